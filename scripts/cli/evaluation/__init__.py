"""`aios eval`: asks the sets of `assets/eval` over HTTP, and keeps and shows the reports."""
