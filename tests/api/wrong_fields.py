"""For each endpoint that creates work a right body, and what makes it wrong: changes to it (None
takes a field away), the field that is at fault then, and what the message says of it."""

from typing import Any

TEXT = {"inputs": "a", "task": "text-generation"}
RIGHT: dict[str, dict[str, Any]] = {
    "/generate": {"prompts": ["a"]},
    "/generate_stream": {"prompt": "a"},
    "/loglikelihood": {"prompts": ["a"], "continuations": ["b"]},
    "/loglikelihood_rolling": {"prompts": ["a"]},
    "/": {"inputs": "a"},
    "/solve/math": {"problem": "a"},
    "/solve/coding": {"problem": "a"},
    "/api/inference": TEXT,
    "/api/inference/stream": TEXT,
    "/v1/completions": {"prompt": "a"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    "/v1/embeddings": {"input": "a"},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [1]},
    "/v1/puzzles/solve": {"grid": "12.."},
    "/v1/echo-task": {"text": "a"},
    "/v1/jobs": {"prompts": ["a"], "task": "generate"},
}
"""A right body, whose first field it cannot do without."""

MISSING, TYPE, RANGE, BOTH, EMPTY = "missing", "wrong type", "out of range", "both", "empty list"
Row = tuple[dict[str, Any], str, str]
ONE_OF_THREE = "expected exactly one of prompts, prompt, inputs, got "
ONE_GRID = "expected exactly one of grid, puzzle, grids, puzzles, got "
FORMS = (
    "expected a non-empty string, a list of strings, a list of token ids, or a list of lists "
    "of token ids"
)
ROWS = "expected rows of numbers or rows of text"
SAMPLED: dict[str, list[Row]] = {
    TYPE: [({"max_tokens": "5"}, "max_tokens", "expected a valid integer")],
    RANGE: [
        ({"temperature": 2.5}, "temperature", "expected less than or equal to 2"),
        ({"max_tokens": -1}, "max_tokens", "expected greater than or equal to "),
        ({"top_p": 0}, "top_p", "expected greater than 0"),
    ],
}
THREE_SHAPES: dict[str, list[Row]] = {
    MISSING: [({"prompts": None, "prompt": None}, "prompts", ONE_OF_THREE + "none")],
    BOTH: [
        ({"prompts": ["a"], "prompt": "a"}, "prompts", ONE_OF_THREE + "prompts and prompt"),
        (
            {"prompts": None, "prompt": "a", "inputs": "a"},
            "prompts",
            ONE_OF_THREE + "prompt and inputs",
        ),
    ],
    EMPTY: [({"prompts": [], "prompt": None}, "prompts", "expected at least 1 item")],
}
PROBLEM: dict[str, list[Row]] = {
    MISSING: [({"problem": None}, "problem", "this field is required")],
    TYPE: [({"problem": 5}, "problem", "expected a valid string"), *SAMPLED[TYPE]],
    RANGE: SAMPLED[RANGE],
    EMPTY: [({"problem": []}, "problem", "expected a valid string")],
}
INFERENCE: dict[str, list[Row]] = {
    MISSING: [({"inputs": None}, "inputs", "this field is required")],
    TYPE: [
        ({"inputs": 5}, "inputs", "expected a valid string"),
        ({"options": 5}, "options", "expected an object"),
        (
            {"options": {"max_new_tokens": "5"}},
            "options.max_new_tokens",
            "expected a valid integer",
        ),
    ],
    RANGE: [
        (
            {"options": {"temperature": 2.5}},
            "options.temperature",
            "expected less than or equal to 2",
        ),
        ({"task": "image-generation"}, "task", "expected one of echo, text-generation"),
    ],
    EMPTY: [({"inputs": []}, "inputs", "expected a valid string")],
}
WRONG: dict[str, dict[str, list[Row]]] = {
    "/generate": THREE_SHAPES | SAMPLED,
    "/generate_stream": THREE_SHAPES | SAMPLED,
    "/loglikelihood": {
        MISSING: [
            ({"prompts": None}, "prompts", "this field is required"),
            ({"continuations": None}, "continuations", "this field is required"),
        ],
        TYPE: [({"prompts": "a"}, "prompts", "expected a valid list")],
        RANGE: [
            ({"scoring": "x"}, "scoring", "expected 'strict' or 'aios_compat'"),
            (
                {"prompts": ["a"] * 65, "continuations": ["b"] * 65},
                "prompts",
                "expected at most 64 items",
            ),
        ],
        EMPTY: [({"continuations": []}, "continuations", "expected at least 1 item")],
    },
    "/loglikelihood_rolling": {
        MISSING: [({"prompts": None}, "prompts", "this field is required")],
        TYPE: [({"prompts": [5]}, "prompts[0]", "expected a valid string")],
        RANGE: [({"condition": "x" * 65}, "condition", "expected at most 64 characters")],
        EMPTY: [({"prompts": []}, "prompts", "expected at least 1 item")],
    },
    "/": {
        MISSING: [({"inputs": None}, "inputs", "this field is required")],
        TYPE: [
            ({"inputs": 5}, "inputs", "expected a valid string"),
            ({"parameters": 5}, "parameters", "expected an object"),
            (
                {"parameters": {"max_new_tokens": "5"}},
                "parameters.max_new_tokens",
                "expected a valid integer",
            ),
        ],
        RANGE: [
            (
                {"parameters": {"temperature": 2.5}},
                "parameters.temperature",
                "expected less than or equal to 2",
            )
        ],
        EMPTY: [({"inputs": []}, "inputs", "expected a valid string")],
    },
    "/solve/math": PROBLEM,
    "/solve/coding": PROBLEM,
    "/api/inference": INFERENCE,
    "/api/inference/stream": INFERENCE,
    "/v1/completions": {
        MISSING: [({"prompt": None}, "prompt", "this field is required")],
        TYPE: [
            ({"prompt": {}}, "prompt", FORMS),
            ({"stream": "perhaps"}, "stream", "expected a boolean"),
            ({"stream_options": 5}, "stream_options", "expected an object"),
            *SAMPLED[TYPE],
        ],
        RANGE: [({"logprobs": 6}, "logprobs", "expected less than or equal to 5"), *SAMPLED[RANGE]],
        EMPTY: [({"prompt": []}, "prompt", FORMS)],
    },
    "/v1/chat/completions": {
        MISSING: [
            ({"messages": None}, "messages", "this field is required"),
            ({"messages": [{"role": "user"}]}, "messages[0].content", "this field is required"),
        ],
        TYPE: [
            ({"messages": "a"}, "messages", "expected a valid list"),
            ({"messages": ["a"]}, "messages[0]", "expected an object"),
            *SAMPLED[TYPE],
        ],
        RANGE: [
            (
                {"messages": [{"role": "x", "content": ""}]},
                "messages[0].role",
                "expected 'system', 'developer', 'user' or",
            ),
            *SAMPLED[RANGE],
        ],
        EMPTY: [
            ({"messages": []}, "messages", "expected at least 1 item"),
            (
                {"messages": [{"role": "user", "content": []}]},
                "messages[0].content",
                "expected a text, or at least one",
            ),
        ],
    },
    "/v1/embeddings": {
        MISSING: [({"input": None}, "input", "this field is required")],
        TYPE: [
            ({"input": 5}, "input", FORMS),
            ({"encoding_format": "hex"}, "encoding_format", "expected 'float' or"),
        ],
        RANGE: [({"dimensions": 0}, "dimensions", "expected greater than or equal to 1")],
        EMPTY: [({"input": []}, "input", FORMS)],
    },
    "/tokenize": {
        MISSING: [({"prompt": None}, "prompt", "expected either prompt or messages")],
        TYPE: [({"prompt": 5}, "prompt", "expected a valid string")],
        RANGE: [
            (
                {"prompt": None, "messages": [{"role": "x", "content": ""}]},
                "messages[0].role",
                "expected 'system'",
            )
        ],
        BOTH: [
            (
                {"messages": [{"role": "user", "content": "a"}]},
                "prompt",
                "expected either prompt or messages",
            )
        ],
        EMPTY: [({"prompt": None, "messages": []}, "messages", "expected at least 1 item")],
    },
    "/detokenize": {
        MISSING: [({"tokens": None}, "tokens", "this field is required")],
        TYPE: [({"tokens": ["a"]}, "tokens[0]", "expected a valid integer")],
        RANGE: [({"tokens": [-1]}, "tokens[0]", "expected greater than or equal to 0")],
    },
    "/v1/puzzles/solve": {
        MISSING: [({"grid": None}, "grid", ONE_GRID + "none")],
        TYPE: [({"grid": 5}, "grid", ROWS)],
        RANGE: [
            ({"max_steps": 0}, "max_steps", "expected greater than or equal to 1"),
            ({"grid": "1" * 129}, "grid", ROWS),
        ],
        BOTH: [({"grids": ["12.."]}, "grid", ONE_GRID + "grid and grids")],
        EMPTY: [
            ({"grid": None, "grids": []}, "grids", "expected at least 1 item"),
            ({"grid": []}, "grid", ROWS),
        ],
    },
    "/v1/echo-task": {
        MISSING: [({"text": None}, "text", "this field is required")],
        TYPE: [
            ({"text": 5}, "text", "expected a valid string"),
            ({"steps": "5"}, "steps", "expected a valid integer"),
        ],
        RANGE: [
            ({"steps": 0}, "steps", "expected greater than or equal to 1"),
            ({"step_ms": -1}, "step_ms", "expected greater than or equal to 0"),
        ],
        EMPTY: [({"text": []}, "text", "expected a valid string")],
    },
    "/v1/jobs": THREE_SHAPES
    | {
        MISSING: [({"task": None}, "task", "this field is required"), *THREE_SHAPES[MISSING]],
        TYPE: [({"task": 5}, "task", "expected a valid string"), *SAMPLED[TYPE]],
        RANGE: [
            ({"task": "sing"}, "task", "expected one of generate, completions"),
            *SAMPLED[RANGE],
        ],
    },
}
