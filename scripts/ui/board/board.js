// Draws the board from `data`, and reports edits as `edited`: all cells in one text, `.` for a blank.

const BLANK = ".";
const states = new WeakMap();

export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  const root = parentElement.querySelector(".sudoku");

  let state = states.get(root);
  if (!state) {
    state = { selected: 0, version: null, cells: "" };
    states.set(root, state);
  }
  // What a person has typed meanwhile is newer than what the app knows of.
  const isNew = state.version !== data.version || state.cells.length !== data.cells.length;
  if (isNew || !data.isEditable) {
    state.cells = data.cells;
    state.version = data.version;
    state.selected = Math.min(state.selected, data.cells.length - 1);
  }

  const size = Math.round(Math.sqrt(state.cells.length));
  const edit = (digit) => {
    const before = state.cells.slice(0, state.selected);
    state.cells = before + digit + state.cells.slice(state.selected + 1);
    draw();
    setTriggerValue("edited", state.cells);
  };
  const select = (index) => {
    state.selected = (index + state.cells.length) % state.cells.length;
    draw();
    root.querySelectorAll(".cell")[state.selected].focus();
  };

  const onKey = (event) => {
    const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -size, ArrowDown: size };
    if (event.key in moves) {
      select(state.selected + moves[event.key]);
    } else if (/^[1-9]$/.test(event.key) && Number(event.key) <= size) {
      edit(event.key);
      select(state.selected);
    } else if (["Backspace", "Delete", "0", " ", BLANK].includes(event.key)) {
      edit(BLANK);
      select(state.selected);
    } else {
      return;
    }
    event.preventDefault();
  };

  const draw = () => {
    const changed = new Set(data.changed.map(([row, column]) => row * size + column));
    const grid = document.createElement("div");
    grid.className = "grid";
    grid.style.setProperty("--size", size);
    for (let index = 0; index < state.cells.length; index++) {
      grid.append(cellOf(index, changed));
    }
    root.classList.toggle("editable", data.isEditable);
    root.replaceChildren(grid);
    if (data.isEditable) {
      root.append(pad());
    }
  };

  const cellOf = (index, changed) => {
    const row = Math.floor(index / size);
    const column = index % size;
    const digit = state.cells[index];
    const isGiven = (data.givens[index] || BLANK) !== BLANK;
    const classes = {
      given: data.isEditable ? digit !== BLANK : isGiven,
      changed: changed.has(index),
      selected: data.isEditable && index === state.selected,
      "box-right": (column + 1) % data.boxColumns === 0,
      "box-bottom": (row + 1) % data.boxRows === 0,
      "last-column": column === size - 1,
      "last-row": row === size - 1,
    };
    const cell = document.createElement("button");
    cell.type = "button";
    cell.className = "cell";
    for (const [name, isSet] of Object.entries(classes)) {
      cell.classList.toggle(name, isSet);
    }
    cell.textContent = digit === BLANK ? "" : digit;
    const name = digit === BLANK ? "blank" : digit;
    cell.setAttribute("aria-label", `row ${row + 1}, column ${column + 1}: ${name}`);
    if (data.isEditable) {
      cell.onclick = () => select(index);
      cell.onkeydown = onKey;
    } else {
      cell.tabIndex = -1;
    }
    return cell;
  };

  const pad = () => {
    const buttons = document.createElement("div");
    buttons.className = "pad";
    for (let digit = 1; digit <= size; digit++) {
      buttons.append(padButton(String(digit), () => edit(String(digit)), `enter ${digit}`));
    }
    buttons.append(padButton("⌫", () => edit(BLANK), "clear the cell"));
    return buttons;
  };

  const padButton = (text, onClick, label) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.onclick = onClick;
    button.setAttribute("aria-label", label);
    return button;
  };

  draw();
}
