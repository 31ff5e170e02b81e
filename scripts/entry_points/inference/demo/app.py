"""`streamlit run inference/demo/app.py`: the web app, as `aios ui` runs it.

The server is that of the variable `API_URL`.
"""

from scripts.ui.shell import main

main()
