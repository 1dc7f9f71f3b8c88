"""Devices worth having, each written against the same face as yours."""
