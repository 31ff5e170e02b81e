"""The models of the fleet that solve a kind of puzzle."""

from scripts.ui.client import Model, ServerError
from scripts.ui.session import chosen_model, models_of

TASK = "solve"


def able_models(kind: str) -> list[Model]:
    """Return the models that solve puzzles of a kind, and those of which that is not known yet.

    Raise ServerError if the server does not tell its models.
    """
    return [model for model in models_of(TASK) if model.puzzle in ("", kind)]


def cells_served(kind: str) -> int:
    """Return the number of cells of the puzzles that the chosen model solves, or else any model.

    It is 0 where no model tells.
    """
    try:
        models = able_models(kind)
    except ServerError:
        return 0
    for model in models:
        if model.id == chosen_model(TASK):
            return model.context_window
    return models[0].context_window if models else 0


def obstacle(kind: str, plural: str) -> str:
    """Return why the fleet solves no puzzles of a kind, "" if it does or does not tell."""
    try:
        models = models_of(TASK)
        able = able_models(kind)
    except ServerError:
        return ""
    if not able:
        return (
            f"No model that this server serves solves {plural}. You can draw one all the same, and "
            "solve it when such a model is served (`aios serve hrm --model NAME=FOLDER`)."
        )
    name = chosen_model(TASK)
    for model in models:
        if model.id == name and model not in able:
            return (
                f"The model {name}, which is chosen at the left, solves no {plural}. "
                "Choose another, or leave the choice to the server."
            )
    return ""


def model_for(kind: str, num_cells: int) -> str:
    """Return the name of the chosen model, or else of one for puzzles of a kind and of a size.

    Raise ServerError if there is none, or the server does not tell.
    """
    name = chosen_model(TASK)
    if name:
        return name
    models = able_models(kind)
    if not models:
        raise ServerError("The server has no model for this kind of puzzle.")
    for model in models:
        if model.puzzle == kind and model.context_window == num_cells:
            return model.id
    return models[0].id
