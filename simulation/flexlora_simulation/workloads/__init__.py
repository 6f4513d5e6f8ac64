"""What is learned: data sets in their own formats, with their base models and metrics."""
