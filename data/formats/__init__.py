"""Annotation formats: one module for each turns a folder into pictures and their shapes."""
