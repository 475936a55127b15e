"""Shared by tests: no_ray."""

from effnet_ray import Placement


def no_ray(_: Placement) -> None:
    raise AssertionError("Ray was asked for")
