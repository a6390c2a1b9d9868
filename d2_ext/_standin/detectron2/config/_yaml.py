"""YAML that never runs code.

Detectron2's own ``Base-RetinaNet.yaml`` writes its anchor sizes as an expression under the tag
``!!python/object/apply:eval``. Here such a tag goes through a small evaluator of arithmetic, and every other Python tag
is refused.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import IO, Any

import yaml
from yaml.constructor import ConstructorError

PYTHON_TAGS = "tag:yaml.org,2002:python/"
EVAL_TAG = PYTHON_TAGS + "object/apply:eval"

MAX_SOURCE = 2000  # characters
MAX_DEPTH = 40
MAX_STEPS = 10_000
MAX_EXPONENT = 64
MAX_MAGNITUDE = 1e30

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def load_yaml(stream: IO[str], *, allow_expressions: bool) -> Any:
    """Read one YAML document.

    Args:
        stream: open text file; its ``name`` appears in errors.
        allow_expressions: evaluate arithmetic under ``!!python/object/apply:eval`` instead of refusing it.

    Raises:
        yaml.constructor.ConstructorError: for any other Python tag, and for an expression that is more than arithmetic.
    """
    loader = (_ArithmeticLoader if allow_expressions else _PlainLoader)(stream)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def evaluate_arithmetic(source: str) -> Any:
    """Value of an expression of numbers, ``+ - * / **``, lists, tuples, and comprehensions over them.

    Raises:
        ValueError: for anything else (calls, attributes, strings, comparisons, ...), for numbers above 1e30, exponents
            above 64, and expressions that are too long.

    Example:
        >>> evaluate_arithmetic("[[x, x * 2 ** 0.5] for x in [1, 2]]")
        [[1, 1.4142135623730951], [2, 2.8284271247461903]]
    """
    if len(source) > MAX_SOURCE:
        raise ValueError(f"an expression has {len(source)} characters, more than {MAX_SOURCE}")
    try:
        tree = ast.parse(source.strip(), mode="eval")
    except (SyntaxError, RecursionError, MemoryError) as e:
        raise ValueError(f"cannot be read as an expression: {e}") from e
    return _Arithmetic().value(tree.body, {}, 0)


class _Arithmetic:
    """Walks the syntax tree; counts its steps, so that nested comprehensions come to an end."""

    def __init__(self) -> None:
        self.steps = 0

    def value(self, node: ast.expr, names: Mapping[str, Any], depth: int) -> Any:
        self.steps += 1
        if self.steps > MAX_STEPS or depth > MAX_DEPTH:
            raise ValueError(f"is too large: at most {MAX_STEPS} steps and {MAX_DEPTH} levels")
        depth += 1
        match node:
            case ast.Constant(value=v):
                return _number(v)
            case ast.Name(id=name) if name in names:
                return names[name]
            case ast.List(elts=items):
                return [self.value(x, names, depth) for x in items]
            case ast.Tuple(elts=items):
                return tuple(self.value(x, names, depth) for x in items)
            case ast.UnaryOp(op=ast.USub(), operand=x):
                return -_number(self.value(x, names, depth))
            case ast.BinOp(left=a, op=op, right=b) if type(op) in _BINARY:
                return _apply(op, self.value(a, names, depth), self.value(b, names, depth))
            case ast.ListComp(elt=element, generators=[loop]) if not loop.ifs and not loop.is_async:
                return self._comprehension(element, loop, names, depth)
        raise ValueError(f"'{ast.unparse(node)}' is more than arithmetic with numbers, lists and tuples")

    def _comprehension(self, element: ast.expr, loop: ast.comprehension, names: Mapping[str, Any], depth: int) -> Any:
        if not isinstance(loop.target, ast.Name):
            raise ValueError(f"'{ast.unparse(loop.target)}' is not a plain name to loop with")
        items = self.value(loop.iter, names, depth)
        if not isinstance(items, (list, tuple)):
            raise ValueError(f"'{ast.unparse(loop.iter)}' is not a list to loop over")
        return [self.value(element, {**names, loop.target.id: x}, depth) for x in items]


def _apply(op: ast.operator, a: Any, b: Any) -> int | float:
    a, b = _number(a), _number(b)
    if isinstance(op, ast.Pow) and abs(b) > MAX_EXPONENT:
        raise ValueError(f"an exponent of {b} is beyond {MAX_EXPONENT}")
    try:
        return _number(_BINARY[type(op)](a, b))
    except ArithmeticError as e:
        raise ValueError(f"{a} and {b}: {e}") from e


def _number(value: Any) -> int | float:
    if type(value) not in (int, float) or not abs(value) <= MAX_MAGNITUDE:
        raise ValueError(f"{str(value)[:50]} is not a number within {MAX_MAGNITUDE:g}")
    return value


class _PlainLoader(yaml.SafeLoader):
    """YAML's standard types only; says of Python tags why they are refused."""


class _ArithmeticLoader(_PlainLoader):
    """Also evaluates arithmetic."""


def _refuse_python(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
    hint = "merge with allow_unsafe=True for arithmetic under this tag" if node.tag == EVAL_TAG else "write the values"
    raise ConstructorError(
        None,
        None,
        f"the tag '!!python/{suffix}' is not read, since a config file must not run code: {hint}",
        node.start_mark,
    )


def _construct_arithmetic(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    arguments = loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else []
    if len(arguments) != 1 or not isinstance(arguments[0], str):
        raise ConstructorError(None, None, "the tag '!!python/object/apply:eval' takes [one string]", node.start_mark)
    try:
        return evaluate_arithmetic(arguments[0])
    except ValueError as e:
        raise ConstructorError(
            None, None, f"the expression of the tag '!!python/object/apply:eval' {e}", node.start_mark
        ) from e


_PlainLoader.add_multi_constructor(PYTHON_TAGS, _refuse_python)
_ArithmeticLoader.add_constructor(EVAL_TAG, _construct_arithmetic)
