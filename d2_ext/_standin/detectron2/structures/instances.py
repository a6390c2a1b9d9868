"""The objects of one picture, as a table of fields."""

from __future__ import annotations

import itertools
from typing import Any

import torch


class Instances:
    """Fields of equal length, one entry an object, as attributes.

    Attributes whose names begin with ``_`` are private; every other one that is set becomes a field. A field is
    anything with a length that can be indexed: a tensor, ``Boxes``, a list.

    Example:
        >>> objects = Instances((480, 640), scores=torch.tensor([0.9, 0.2]))
        >>> len(objects[objects.scores > 0.5])
        1
    """

    def __init__(self, image_size: tuple[int, int], **kwargs: Any) -> None:
        """Make a table of the given fields for a picture of ``image_size`` = (height, width) px."""
        self._image_size = image_size
        self._fields: dict[str, Any] = {}
        for name, value in kwargs.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in px."""
        return self._image_size

    def __setattr__(self, name: str, val: Any) -> None:
        # Private names are set as of any object: the table itself is one of them.
        store = super().__setattr__ if name[:1] == "_" else self.set
        store(name, val)

    def __getattr__(self, name: str) -> Any:
        fields = self.__dict__.get("_fields", {})  # unpickling asks for attributes before there are any fields
        if name in fields:
            return fields[name]
        raise AttributeError(f"Instances have no field '{name}'.")

    def set(self, name: str, value: Any) -> None:
        """Set a field; its length must be that of the others."""
        length = len(value)
        assert not self._fields or len(self) == length, f"Field '{name}' has length {length}, the others {len(self)}."
        self._fields[name] = value

    def has(self, name: str) -> bool:
        """Whether there is a field of that name."""
        return name in self._fields

    def remove(self, name: str) -> None:
        """Remove a field."""
        del self._fields[name]

    def get(self, name: str) -> Any:
        """The field of that name."""
        return self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """All fields, in the dict that this object uses itself."""
        return self._fields

    def to(self, *args: Any, **kwargs: Any) -> Instances:
        """A copy whose fields went through their own ``to``, where they have one."""
        fields = {k: v.to(*args, **kwargs) if hasattr(v, "to") else v for k, v in self._fields.items()}
        return Instances(self._image_size, **fields)

    def __getitem__(self, item: Any) -> Instances:
        """The objects at an integer (a table of one), slice, index tensor or mask.

        Raises:
            IndexError: for an integer out of range.
        """
        if type(item) is int:
            if not -len(self) <= item < len(self):
                raise IndexError(f"Index {item} is out of range: there are {len(self)} instances.")
            item = slice(item, None, len(self))  # one entry, whatever the type of the field
        return Instances(self._image_size, **{k: v[item] for k, v in self._fields.items()})

    def __len__(self) -> int:
        for value in self._fields.values():
            return value.__len__()  # not len(): a traced length is a tensor
        raise NotImplementedError("Instances without fields have no length.")

    def __iter__(self) -> Any:
        raise NotImplementedError("Instances cannot be iterated; index them.")

    @staticmethod
    def cat(instance_lists: list[Instances]) -> Instances:
        """The objects of several tables with the same fields and picture size; a list of one gives that one itself.

        Raises:
            ValueError: if a field's type cannot be concatenated.
        """
        assert instance_lists, "Instances.cat needs at least one table."
        assert all(isinstance(i, Instances) for i in instance_lists), "Instances.cat takes a list of Instances."
        first = instance_lists[0]
        if len(instance_lists) == 1:
            return first
        if not isinstance(first.image_size, torch.Tensor):  # it is one during tracing
            sizes = [i.image_size for i in instance_lists]
            assert all(size == first.image_size for size in sizes), f"Pictures differ in size: {sizes}."
        result = Instances(first.image_size)
        for name in first.get_fields():
            result.set(name, _concatenate([i.get(name) for i in instance_lists]))
        return result

    def __str__(self) -> str:
        height, width = self._image_size
        fields = ", ".join(f"{name}: {value}" for name, value in self._fields.items())
        return (
            f"{type(self).__name__}(num_instances={len(self)}, image_height={height}, image_width={width}, "
            f"fields=[{fields}])"
        )

    __repr__ = __str__


def _concatenate(values: list[Any]) -> Any:
    kind = type(values[0])
    if isinstance(values[0], torch.Tensor):
        return torch.cat(values, dim=0)
    if isinstance(values[0], list):
        return list(itertools.chain(*values))
    if hasattr(kind, "cat"):
        return kind.cat(values)
    raise ValueError(f"Fields of type {kind.__name__} cannot be concatenated.")
