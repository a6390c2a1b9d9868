"""YAML from strangers: plain values of bounded size, and arithmetic where it is asked for. Nothing runs code.

Published Detectron2 configs compute anchor sizes under the tag ``!!python/object/apply:eval``. Such an expression is
not handed to Python's ``eval``; a small evaluator knows numbers, lists, tuples, ``+ - * / **`` and comprehensions.
"""

from __future__ import annotations

import ast
import itertools
import math
import operator
from collections.abc import Iterable
from typing import IO, Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

_EVAL_TAG = "tag:yaml.org,2002:python/object/apply:eval"
_MERGE_TAG = "tag:yaml.org,2002:merge"

# Of a file, counting again what an alias repeats; characters that count as one value.
_MAX_VALUES, _MAX_ALIASES, _MAX_NESTING, _TEXT_PER_VALUE = 100_000, 1_000, 50, 100
# Of an expression: characters, nodes evaluated, nodes within each other.
_MAX_SOURCE, _MAX_STEPS, _MAX_DEPTH = 2_000, 10_000, 40
_MAX_EXPONENT, _MAX_MAGNITUDE = 64, 1e30


def load_yaml(stream: IO[Any], *, allow_expressions: bool) -> Any:
    """Read one document from a file, whose ``name`` appears in errors.

    Args:
        allow_expressions: compute arithmetic under the tag ``!!python/object/apply:eval``.

    Raises:
        yaml.YAMLError: with file, line and column, for malformed YAML, a tag that would need code, a key given twice
            in one mapping, a value that its type does not allow (a date of month 99), and a document that stands for
            more values, aliases or levels than any config needs.
    """
    loader = _ConfigLoader(stream, allow_expressions)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class _ConfigLoader(yaml.SafeLoader):
    """PyYAML's safe loader, with limits and with keys that must differ."""

    def __init__(self, stream: IO[Any], allow_expressions: bool) -> None:
        super().__init__(stream)
        self.allow_expressions = allow_expressions
        self._aliases = self._nesting = 0
        self._extents: dict[yaml.Node, tuple[int, int]] = {}  # of finished nodes: values, levels
        self._unfinished: set[yaml.Node] = set()

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Build the next node; refuse too many aliases or levels before they cost anything."""
        event = self.peek_event()
        self._aliases += isinstance(event, yaml.AliasEvent)
        self._nesting += 1
        if self._aliases > _MAX_ALIASES:
            raise ComposerError(None, None, f"more than {_MAX_ALIASES} aliases (*name)", event.start_mark)
        if self._nesting > _MAX_NESTING:
            raise ComposerError(None, None, f"more than {_MAX_NESTING} levels of nesting", event.start_mark)
        node = super().compose_node(parent, index)
        self._nesting -= 1
        return node

    def construct_document(self, node: yaml.Node) -> Any:
        """Turn the root into values."""
        self._measure(node)
        return super().construct_document(node)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Turn a node into a value; what PyYAML's conversions happen to raise becomes an error with a place."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise ConstructorError(None, None, f"the value is no {tag}: {error}", node.start_mark) from error

    def _measure(self, node: yaml.Node) -> tuple[int, int]:
        """How many values and levels a node stands for, written out; each node is visited once, however often it is
        repeated, so a document that means billions of values costs no more than its text. Checks keys on the way.
        """
        if node in self._extents:
            return self._extents[node]
        if node in self._unfinished:
            raise ComposerError(None, None, "an alias (*name) that stands within what it repeats", node.start_mark)
        self._unfinished.add(node)
        values, levels = 1, 0
        if node.tag == _EVAL_TAG:
            values = _count(self.construct_object(node))
        elif isinstance(node, yaml.ScalarNode):
            values += len(node.value) // _TEXT_PER_VALUE
        elif isinstance(node, yaml.MappingNode):
            self._check_keys(node)
        for child in self._children(node):
            more, depth = self._measure(child)
            values, levels = values + more, max(levels, depth)
            if values > _MAX_VALUES or levels >= _MAX_NESTING:
                too_much = f"more than {_MAX_VALUES} values or {_MAX_NESTING} levels, with what its aliases repeat"
                raise ComposerError(None, None, too_much, node.start_mark)
        self._unfinished.remove(node)
        self._extents[node] = values, levels + 1
        return self._extents[node]

    def _children(self, node: yaml.Node) -> Iterable[yaml.Node]:
        """The nodes within a node that is no expression, keys included."""
        if isinstance(node, yaml.MappingNode):
            return itertools.chain.from_iterable(node.value)
        return () if isinstance(node, yaml.ScalarNode) or node.tag == _EVAL_TAG else node.value

    def _check_keys(self, node: yaml.MappingNode) -> None:
        """Refuse a key that a mapping has twice: PyYAML would silently keep the last."""
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if key.tag == _MERGE_TAG or not isinstance(key, yaml.ScalarNode):
                continue
            value = self.construct_object(key)
            if value in lines:
                twice = f"the key {value!r} stands twice in one mapping, first in line {lines[value]}: keep one of them"
                raise ConstructorError(None, None, twice, key.start_mark)
            lines[value] = key.start_mark.line + 1


def _construct_expression(loader: _ConfigLoader, node: yaml.Node) -> Any:
    shown = "the tag '!!python/object/apply:eval'"
    if not loader.allow_expressions:
        hint = f"{shown} is arithmetic, which is read only with merge_from_file(..., allow_unsafe=True)"
        raise ConstructorError(None, None, hint, node.start_mark)
    sources = loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else []
    if len(sources) != 1 or not isinstance(sources[0], str):
        raise ConstructorError(None, None, f"{shown} takes [one string]", node.start_mark)
    try:
        return evaluate_arithmetic(sources[0])
    except ValueError as error:
        raise ConstructorError(None, None, f"{shown} cannot be computed: {error}", node.start_mark) from error


def _refuse_python(loader: _ConfigLoader, suffix: str, node: yaml.Node) -> None:
    refusal = f"the tag '!!python/{suffix}' would run Python, which a config file must not. Write the value itself"
    raise ConstructorError(None, None, refusal, node.start_mark)


_ConfigLoader.add_multi_constructor("tag:yaml.org,2002:python/", _refuse_python)
_ConfigLoader.add_constructor(_EVAL_TAG, _construct_expression)


def _count(value: Any) -> int:
    return 1 + sum(map(_count, value)) if isinstance(value, list | tuple) else 1


_OPERATORS: dict[type[ast.AST], Any] = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
_OPERATORS |= {ast.Div: operator.truediv, ast.Pow: operator.pow, ast.USub: operator.neg, ast.UAdd: operator.pos}


def evaluate_arithmetic(source: str) -> Any:
    """Compute an expression of numbers, lists, tuples, ``+ - * / **`` and ``[... for name in list]``.

    ValueError if it is anything else, cannot be computed, or goes beyond the limits of this module.
    """
    if len(source) > _MAX_SOURCE:
        raise ValueError(f"the expression has {len(source)} characters; at most {_MAX_SOURCE} are read")
    try:
        tree = ast.parse(source.strip(), mode="eval")
        return _Evaluation().visit(tree.body)
    except (SyntaxError, MemoryError, RecursionError, ArithmeticError) as error:  # brackets without end among them
        raise ValueError(f"{source[:80]!r}: {error or type(error).__name__}") from error


class _Evaluation(ast.NodeVisitor):
    """Evaluates the nodes that have a method here, and refuses all others."""

    def __init__(self) -> None:
        self._steps = self._depth = 0
        self._names: dict[str, Any] = {}

    def visit(self, node: ast.AST) -> Any:
        self._steps += 1
        self._depth += 1
        if self._steps > _MAX_STEPS or self._depth > _MAX_DEPTH:
            raise ValueError(f"more than {_MAX_STEPS} steps or {_MAX_DEPTH} levels")
        value = super().visit(node)
        self._depth -= 1
        return value

    def generic_visit(self, node: ast.AST) -> Any:
        raise ValueError(f"{ast.unparse(node)!r} is not arithmetic with numbers, lists and tuples")

    def visit_Constant(self, node: ast.Constant) -> Any:
        return self._number(node.value)

    def visit_Name(self, node: ast.Name) -> Any:
        return self._names[node.id] if node.id in self._names else self.generic_visit(node)

    def visit_List(self, node: ast.List) -> Any:
        return [self.visit(item) for item in node.elts]

    def visit_Tuple(self, node: ast.Tuple) -> Any:
        return tuple(self.visit(item) for item in node.elts)

    def visit_BinOp(self, node: ast.UnaryOp | ast.BinOp) -> Any:
        if type(node.op) not in _OPERATORS:
            return self.generic_visit(node)
        operands = [node.operand] if isinstance(node, ast.UnaryOp) else [node.left, node.right]
        values = [self._number(self.visit(operand)) for operand in operands]
        if isinstance(node.op, ast.Pow) and abs(values[1]) > _MAX_EXPONENT:
            raise ValueError(f"the exponent {values[1]} is beyond {_MAX_EXPONENT}")
        return self._number(_OPERATORS[type(node.op)](*values))

    visit_UnaryOp = visit_BinOp

    def visit_ListComp(self, node: ast.ListComp) -> Any:
        loop = node.generators[0]
        if len(node.generators) > 1 or loop.ifs or loop.is_async or not isinstance(loop.target, ast.Name):
            return self.generic_visit(node)
        items = self.visit(loop.iter)
        if not isinstance(items, list | tuple):
            raise ValueError(f"{ast.unparse(loop.iter)!r} is not a list to go through")
        outer, results = self._names, []
        for item in items:
            self._names = {**outer, loop.target.id: item}
            results.append(self.visit(node.elt))
        self._names = outer
        return results

    def _number(self, value: Any) -> Any:
        if type(value) not in (int, float) or not abs(value) <= _MAX_MAGNITUDE or math.isnan(value):
            raise ValueError(f"{value!r} is no number from -{_MAX_MAGNITUDE:g} to {_MAX_MAGNITUDE:g}")
        return value
