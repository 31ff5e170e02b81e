"""`aios batch`: files of requests, answered by models in this process or by a fleet."""
