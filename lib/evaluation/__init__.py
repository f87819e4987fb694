"""Judging features by what the labels of their neighbours say. The only place where labels matter."""
