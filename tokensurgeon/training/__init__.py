"""Predictors of rows that are trained."""
