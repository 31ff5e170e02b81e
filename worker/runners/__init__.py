"""The runners, one for each kind of model: how it is loaded, stepped and scored."""
