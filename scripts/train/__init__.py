"""Programs that train the models that ship and measure how many problems they solve."""
