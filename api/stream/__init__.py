"""The way back: jobs are followed, and their events become an answer or a stream."""
