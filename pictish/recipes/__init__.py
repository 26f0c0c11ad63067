"""Recipes: a data set, what is made of it, and how models of it are measured."""
