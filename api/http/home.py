"""The page of `GET /`: what this is, which models it serves, and what to try next.

The functions are pure. The page needs nothing from elsewhere: its script stands in it, and there
are no fonts and no images. All names and descriptions are escaped.
"""

import json
import shlex
from base64 import b64encode
from hashlib import sha256
from html import escape
from pathlib import Path

from pydantic import BaseModel

from api.http import document

NAME = "AI-OS HRM fleet"
_SCRIPT = "\n" + (Path(__file__).parent / "home.js").read_text(encoding="utf-8")
_SCRIPT_DIGEST = b64encode(sha256(_SCRIPT.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_SCRIPT_DIGEST}'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The Content-Security-Policy of the page."""
_PROMPT = "Compute: 347 + 285"
_PUZZLE = "530070000600195000098000060800060003400803001700020006060000280000419005000080079"


class HomeModel(BaseModel):
    id: str
    description: str
    tasks: list[str]
    is_default: bool


class Home(BaseModel):
    """The content of `GET /`, as a page or as JSON.

    `models` is None where only callers with a key may know them, or while they are not known.
    `links` are paths, by what they lead to.
    """

    name: str
    status: str
    needs_key: bool
    models: list[HomeModel] | None
    links: dict[str, str]
    example: str


def links_below(root_path: str) -> dict[str, str]:
    paths = {
        "documentation": "/docs",
        "openapi": document.PATH,
        "models": "/v1/models",
        "health": "/healthz",
        "readiness": "/readyz",
    }
    return {name: root_path + path for name, path in paths.items()}


def example_of(base_url: str, models: list[HomeModel] | None, *, needs_key: bool) -> str:
    """Return a command that asks a model for something that it can do.

    The default model is preferred. Where no model can do any of it, the command lists the models.
    """
    call: tuple[str, dict[str, str]] | None = None
    # The default model comes first: False is less than True.
    for model in sorted(models or [], key=lambda model: not model.is_default):
        call = _call_of(model)
        if call is not None:
            break
    if models is None:
        call = "/v1/completions", {"prompt": _PROMPT}

    key = ""
    if needs_key:
        key = ' -H "Authorization: Bearer $KEY"'
    if call is None:
        return f"curl {shlex.quote(base_url + '/v1/models')}{key}"
    path, body = call
    url = shlex.quote(base_url + path)
    return f"curl {url}{key} -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"


def _call_of(model: HomeModel) -> tuple[str, dict[str, str]] | None:
    """Return the path and the body of a request that suits the model, None if none of ours does."""
    if "generate" in model.tasks:
        return "/v1/completions", {"model": model.id, "prompt": _PROMPT}
    if "solve" in model.tasks:
        return "/v1/puzzles/solve", {"model": model.id, "puzzle": _PUZZLE}
    if "embed" in model.tasks:
        return "/v1/embeddings", {"model": model.id, "input": _PROMPT}
    return None


def wants_html(accept: str) -> bool:
    """Return whether a page is preferred to JSON, by RFC 9110.

    A browser names HTML; curl takes anything, and gets JSON.
    """
    return _quality(accept, "text", "html") > _quality(accept, "application", "json")


def _quality(accept: str, main: str, sub: str) -> float:
    """Return the weight of the most specific range in `accept` that fits a type."""
    weights: dict[str, float] = {}
    for part in accept.lower().split(","):
        name, *parameters = [piece.strip() for piece in part.split(";")]
        quality = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() == "q":
                quality = _number(value)
        weights.setdefault(name, quality)
    for name in (f"{main}/{sub}", f"{main}/*", "*/*"):
        if name in weights:
            return weights[name]
    return 0.0


def _number(text: str) -> float:
    """Return a weight, from 0 to 1. Any other text counts as 0."""
    try:
        number = float(text)
    except ValueError:
        return 0.0
    if 0 <= number <= 1:
        return number
    return 0.0


def page(home: Home, root_path: str = "") -> str:
    """Return the page as HTML, in the light or dark colours that the reader prefers."""
    links = ""
    for name, url in home.links.items():
        links += f'<li><a href="{escape(url)}">{escape(name)}</a></li>'
    key = ""
    if home.needs_key:
        key = "<p>Callers need an API key: <code>Authorization: Bearer KEY</code>.</p>"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(home.name)}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ background: Canvas; color: CanvasText; font: 16px/1.5 system-ui, sans-serif; }}
main {{ max-width: 46rem; margin: 2rem auto; padding: 0 .5rem; }}
pre {{ overflow-x: auto; padding: 1rem; border: 1px solid; }}
table {{ border-collapse: collapse; }}
label {{ display: block; margin-top: .5rem; }}
textarea, input, select {{ box-sizing: border-box; width: 100%; font: inherit; }}
button {{ margin: .75rem .5rem 0 0; padding: .3rem 1rem; font: inherit; }}
#answer {{ min-height: 1.5em; white-space: pre-wrap; overflow-wrap: anywhere; }}
td, th {{ text-align: left; padding: .2rem 1rem .2rem 0; vertical-align: top; }}
</style>
</head>
<body>
<main>
<h1>{escape(home.name)}</h1>
<p>Serves Hierarchical Reasoning Models, and transformers beside them, over HTTP. Status: {escape(home.status)}.</p>
{key}
<h2>Models</h2>
{_models(home.models)}
{_form(home, root_path)}<h2>From a program</h2>
<pre tabindex="0"><code>{escape(home.example)}</code></pre>
<h2>More</h2>
<ul>{links}</ul>
</main>
</body>
</html>
"""


def _form(home: Home, root_path: str) -> str:
    """Return the form with a prompt, "" where no model writes text."""
    writers: list[HomeModel] = []
    for model in home.models or []:
        if "generate" in model.tasks:
            writers.append(model)
    if home.models is not None and not writers:
        return ""

    fields = ""
    if len(writers) > 1:
        options = ""
        for model in sorted(writers, key=lambda model: not model.is_default):
            options += f"<option>{escape(model.id)}</option>"
        fields += (
            f'<label for="model">Model</label><select id="model" name="model">{options}</select>'
        )
    elif writers:
        fields += f'<input type="hidden" name="model" value="{escape(writers[0].id)}">'
    if home.needs_key:
        fields += '<label for="key">Key</label>'
        fields += '<input id="key" name="key" type="password" autocomplete="off">'
    return f"""<h2>Try it</h2>
<form id="ask" data-url="{escape(root_path)}/v1/completions">
<label for="prompt">Prompt</label>
<textarea id="prompt" name="prompt" rows="3" required>{_PROMPT}</textarea>
{fields}
<button type="submit">Ask</button><button type="button" id="stop" disabled>Stop</button>
</form>
<pre id="answer" tabindex="0" role="region" aria-label="Answer"></pre>
<p id="state" role="status"></p>
<noscript><p>The form needs JavaScript. The command below does without.</p></noscript>
<script type="module">{_SCRIPT}</script>
"""


def _models(models: list[HomeModel] | None) -> str:
    if models is None:
        return "<p>Not shown here.</p>"
    if not models:
        return "<p>No worker serves one yet.</p>"
    rows = ""
    for model in models:
        name = model.id
        if model.is_default:
            name += " (default)"
        rows += f"<tr><td>{escape(name)}</td>"
        rows += f"<td>{escape(', '.join(model.tasks))}</td>"
        rows += f"<td>{escape(model.description)}</td></tr>"
    return f"<table><tr><th>id</th><th>tasks</th><th>description</th></tr>{rows}</table>"
