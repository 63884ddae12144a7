"""Copies of nested structures: modules, tensors, functions, containers, objects of any class."""
