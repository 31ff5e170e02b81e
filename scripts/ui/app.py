"""The app, for `aios ui` or `streamlit run` on this file.

The server is that of the variable `API_URL`, the key that of `API_KEY` unless a person enters one.
"""

from scripts.ui.shell import main

main()
