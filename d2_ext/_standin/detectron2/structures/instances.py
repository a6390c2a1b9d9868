"""The objects of one image, with any number of properties."""

from __future__ import annotations

import itertools
from typing import Any, NoReturn

import torch


class Instances:
    """N objects of an image. Every property is a field of N entries: a tensor, ``Boxes``, a list and so on.

    Fields are attributes: ``objects.scores = scores``. Names with a leading underscore are ordinary attributes.
    """

    def __init__(self, image_size: tuple[int, int], **kwargs: Any) -> None:
        """Start with the fields ``kwargs``, in an image of (height, width) ``image_size``."""
        self.__dict__.update(_image_size=image_size, _fields={})  # two names that pickles of Detectron2 hold
        for field in kwargs.items():
            self.set(*field)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the image, in px."""
        return self._image_size

    def __setattr__(self, name: str, val: Any) -> None:
        (super().__setattr__ if name[:1] == "_" else self.set)(name, val)

    def __getattr__(self, name: str) -> Any:
        fields = self.__dict__.get("_fields", {})  # there is none yet while a copy is being made
        if name in fields:
            return fields[name]
        raise AttributeError(f"These Instances have no field {name!r}; they have {sorted(fields)}.")

    def set(self, name: str, value: Any) -> None:
        """Add or replace a field; AssertionError if its length is not that of the fields there are."""
        if self._fields and len(value) != len(self):
            raise AssertionError(f"Field {name!r} has {len(value)} entries, but there are {len(self)} instances.")
        len(value)  # a TypeError for what has no length
        self._fields[name] = value

    def has(self, name: str) -> bool:
        """Whether there is such a field."""
        return name in self._fields

    def remove(self, name: str) -> None:
        """Remove a field; KeyError if there is none."""
        del self._fields[name]

    def get(self, name: str) -> Any:
        """A field; KeyError if there is none."""
        return self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """All fields by name; the dict itself, not a copy."""
        return self._fields

    def to(self, *args: Any, **kwargs: Any) -> Instances:
        """New ``Instances`` whose fields are moved by their ``to``, if they have one."""
        return self._map(lambda value: value.to(*args, **kwargs) if hasattr(value, "to") else value)

    def __getitem__(self, item: Any) -> Instances:
        """The objects at an integer (IndexError if beyond the last), slice, list or tensor of indices, or (N,) mask."""
        if type(item) is int:
            place = range(len(self))[item]  # raises IndexError; counts from the end if negative
            item = slice(place, place + 1)
        return self._map(lambda value: value[item])

    def _map(self, function: Any) -> Instances:
        return Instances(self._image_size, **{name: function(value) for name, value in self._fields.items()})

    def __len__(self) -> int:
        for value in self._fields.values():
            return len(value)
        raise NotImplementedError("Instances without fields have no length.")

    def __iter__(self) -> NoReturn:
        raise NotImplementedError("Instances cannot be iterated over; use range(len(...)) and an index.")

    @staticmethod
    def cat(instance_lists: list[Instances]) -> Instances:
        """Put the objects of one image together; the fields are those of the first.

        Raises:
            AssertionError: if the list is empty, holds other things, or sizes of images differ.
            ValueError: for a field that is no tensor or list and whose class has no ``cat``.
        """
        if not instance_lists or not all(isinstance(each, Instances) for each in instance_lists):
            raise AssertionError(f"At least one Instances, and nothing else, was expected, not {instance_lists!r}.")
        first, *others = instance_lists
        if not others:
            return first
        if any(each.image_size != first.image_size for each in others):
            raise AssertionError(
                f"Images of one size were expected, not {[each.image_size for each in instance_lists]}"
            )
        fields = {name: _join([each.get(name) for each in instance_lists], name) for name in first.get_fields()}
        return Instances(first.image_size, **fields)

    def __str__(self) -> str:
        height, width = self._image_size
        fields = ", ".join(f"{name}: {value}" for name, value in self._fields.items())
        return f"Instances(num_instances={len(self)}, image_height={height}, image_width={width}, fields=[{fields}])"

    __repr__ = __str__


def _join(values: list[Any], name: str) -> Any:
    """One value of a field from those of several ``Instances``."""
    kind = type(values[0])
    if issubclass(kind, torch.Tensor):
        return torch.cat(values)
    if issubclass(kind, list):
        return list(itertools.chain.from_iterable(values))
    if not hasattr(kind, "cat"):
        raise ValueError(f"Field {name!r}: values of {kind.__name__} cannot be concatenated; the class has no cat().")
    return kind.cat(values)
