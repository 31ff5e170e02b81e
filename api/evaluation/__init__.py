"""Evaluation: small sets of questions with right answers, what models make of them, and regressions."""
