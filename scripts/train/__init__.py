"""Programs that train the sample models and measure how many problems they solve."""
