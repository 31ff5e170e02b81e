// Draws the board of `data`, and reports edits as `edited`. `board.py` says what both are.

const CLEARING = ["Backspace", "Delete"];
// Wider boards have cells too small for text, and for a finger unless they are made larger.
const MOST_WIDE_COLUMNS = 12;
const boards = new WeakMap();

export default function (component) {
  const { data, parentElement, setStateValue } = component;
  const root = parentElement.querySelector(".board");
  if (!boards.has(root)) {
    boards.set(root, new Board(root));
  }
  // A state and no trigger, so that the newest drawing goes with whatever is clicked next.
  boards.get(root).show(data, (drawing) => setStateValue("edited", drawing));
}

class Board {
  constructor(root) {
    this.root = root;
    this.data = null;
    this.signs = [];
    this.selected = 0;
    this.brush = null;
    this.stroke = null;
    this.isLarge = false;
  }

  get columns() {
    return this.data.rows[0].length;
  }

  get blank() {
    return this.data.signs[0].sign;
  }

  show(data, report) {
    const before = this.data;
    const shape = (board) => [board.rows.length, board.rows[0].length, board.label].join();
    const isOther = !before || shape(before) !== shape(data) || before.isEditable !== data.isEditable;
    this.data = data;
    this.report = report;
    // What a person has drawn meanwhile is newer than what the app knows of.
    if (isOther || !data.isEditable || before.version !== data.version) {
      this.signs = [...data.rows.join("")];
    }
    if (isOther) {
      this.selected = 0;
      this.brush ??= (data.signs[1] ?? data.signs[0]).sign;
      this.build();
    }
    this.draw();
  }

  build() {
    this.grid = element("div", "grid", { role: "grid", "aria-label": this.data.label });
    this.grid.setAttribute("aria-readonly", String(!this.data.isEditable));
    this.cells = [];
    for (let row = 0; row < this.data.rows.length; row++) {
      const line = element("div", "row", { role: "row" });
      for (let column = 0; column < this.columns; column++) {
        line.append(this.newCell(row, column));
      }
      this.grid.append(line);
    }

    const frame = element("div", "frame");
    frame.append(this.grid);
    this.root.className = `board ${this.data.look}`;
    this.root.classList.toggle("editable", this.data.isEditable);
    this.root.classList.toggle("small", this.data.isSmall);
    this.root.classList.toggle("wide", this.columns > MOST_WIDE_COLUMNS);
    this.root.style.setProperty("--columns", this.columns);
    this.root.replaceChildren(frame);
    if (this.data.isEditable) {
      this.root.append(this.newPad());
      this.listen();
    }
  }

  newCell(row, column) {
    const cell = element("div", "cell", { role: "gridcell" });
    const { boxRows, boxColumns, rows } = this.data;
    cell.classList.toggle("box-right", (column + 1) % boxColumns === 0);
    cell.classList.toggle("box-bottom", (row + 1) % boxRows === 0);
    cell.classList.toggle("last-column", column === this.columns - 1);
    cell.classList.toggle("last-row", row === rows.length - 1);
    cell.dataset.index = this.cells.length;
    this.cells.push(cell);
    return cell;
  }

  newPad() {
    this.padButtons = new Map();
    const pad = element("div", "pad", { role: "toolbar", "aria-label": "Pad" });
    let offered = this.data.signs.filter((sign) => !sign.isOnlyInAnswers);
    if (!this.data.paints) {
      offered = [...offered.slice(1), offered[0]];
    }
    for (const { sign, name } of offered) {
      const isBlank = sign === this.blank;
      const button = element("button", "sign", { type: "button", "data-sign": sign });
      let label = isBlank ? "clear the cell" : `enter ${name}`;
      button.textContent = isBlank ? "⌫" : sign;
      if (this.data.paints) {
        label = `draw ${name}`;
        button.textContent = name;
      }
      button.setAttribute("aria-label", label);
      button.onclick = () => this.choose(sign);
      this.padButtons.set(sign, button);
      pad.append(button);
    }
    if (this.data.paints && this.columns > MOST_WIDE_COLUMNS) {
      pad.append(this.newSizeButton());
    }
    return pad;
  }

  newSizeButton() {
    const button = element("button", "size", { type: "button" });
    button.textContent = "larger cells";
    const show = () => {
      this.root.classList.toggle("large", this.isLarge);
      button.setAttribute("aria-pressed", String(this.isLarge));
    };
    button.onclick = () => {
      this.isLarge = !this.isLarge;
      show();
    };
    show();
    return button;
  }

  draw() {
    const changed = new Set();
    for (const [row, column] of this.data.changed) {
      // In the field of a network there may be more than the grid that is shown.
      if (column < this.columns) {
        changed.add(row * this.columns + column);
      }
    }
    const givens = this.data.givens.join("");
    const names = new Map(this.data.signs.map(({ sign, name }) => [sign, name]));
    this.cells.forEach((cell, index) => {
      const sign = this.signs[index];
      const given = this.data.isEditable ? sign : givens[index];
      cell.dataset.sign = sign;
      cell.classList.toggle("given", given !== undefined && given !== this.blank);
      cell.classList.toggle("changed", changed.has(index));
      cell.classList.toggle("selected", this.data.isEditable && index === this.selected);
      cell.tabIndex = index === this.selected ? 0 : -1;
      setText(cell, sign === this.blank ? "" : sign);
      const row = Math.floor(index / this.columns) + 1;
      const column = (index % this.columns) + 1;
      let label = `row ${row}, column ${column}: ${names.get(sign) ?? sign}`;
      if (changed.has(index)) {
        label += ", changed";
      }
      if (cell.getAttribute("aria-label") !== label) {
        cell.setAttribute("aria-label", label);
      }
    });
    if (this.data.isEditable && this.data.paints) {
      for (const [sign, button] of this.padButtons) {
        button.setAttribute("aria-pressed", String(sign === this.brush));
      }
    }
    this.grid.onkeydown = (event) => this.takeKey(event);
  }

  listen() {
    const indexOf = (target) => Number(target?.closest?.(".cell")?.dataset.index ?? NaN);
    this.grid.onclick = (event) => {
      const index = indexOf(event.target);
      if (!Number.isNaN(index)) {
        this.select(index);
      }
    };
    if (!this.data.paints) {
      return;
    }
    this.grid.onpointerdown = (event) => {
      const index = indexOf(event.target);
      if (event.button !== 0 || Number.isNaN(index)) {
        return;
      }
      this.stroke = new Set([index]);
      // A finger may be about to scroll, so its first cell waits until it moves on or is lifted.
      if (event.pointerType === "mouse") {
        this.paint(this.stroke);
      }
    };
    this.grid.onpointermove = (event) => {
      if (!this.stroke) {
        return;
      }
      // Events of a finger all go to the cell where it began.
      const index = indexOf(this.root.getRootNode().elementFromPoint(event.clientX, event.clientY));
      if (!Number.isNaN(index) && !this.stroke.has(index)) {
        this.stroke.add(index);
        this.paint(this.stroke);
      }
    };
    const lift = () => {
      if (this.stroke) {
        this.paint(this.stroke);
        this.stroke = null;
        this.tell();
      }
    };
    this.grid.onpointerup = lift;
    this.grid.onpointerleave = (event) => event.pointerType === "mouse" && lift();
    this.grid.onpointercancel = () => {
      this.stroke = null;
    };
  }

  takeKey(event) {
    const moves = {
      ArrowLeft: -1,
      ArrowRight: 1,
      ArrowUp: -this.columns,
      ArrowDown: this.columns,
    };
    if (event.ctrlKey || event.metaKey || event.altKey) {
      return;
    }
    const sign = this.signOf(event.key);
    if (event.key in moves) {
      const count = this.signs.length;
      this.select((this.selected + moves[event.key] + count) % count);
    } else if (sign !== null && this.data.isEditable) {
      this.put([this.selected], sign);
      this.tell();
    } else {
      return;
    }
    event.preventDefault();
  }

  // Return the sign that a key stands for, null if it is none.
  signOf(key) {
    if (CLEARING.includes(key)) {
      return this.blank;
    }
    if (key === "Enter" && this.data.paints) {
      return this.brush;
    }
    for (const { sign, keys } of this.data.signs) {
      if (key === sign || (key.length === 1 && keys.includes(key))) {
        return sign;
      }
    }
    return null;
  }

  // Take a sign of the pad: as the brush, or into the selected cell.
  choose(sign) {
    if (this.data.paints) {
      this.brush = sign;
      this.draw();
    } else {
      this.put([this.selected], sign);
      this.tell();
    }
  }

  select(index) {
    this.selected = index;
    this.draw();
    this.cells[index].focus();
  }

  paint(indices) {
    this.put(indices, this.brush);
  }

  put(indices, sign) {
    const isUnique = this.data.signs.some((one) => one.sign === sign && one.isUnique);
    for (const index of indices) {
      if (isUnique) {
        this.signs = this.signs.map((one) => (one === sign ? this.blank : one));
      }
      this.signs[index] = sign;
    }
    this.draw();
  }

  tell() {
    const rows = [];
    for (let start = 0; start < this.signs.length; start += this.columns) {
      rows.push(this.signs.slice(start, start + this.columns).join(""));
    }
    const { version, label } = this.data;
    this.report({ version, label, rows });
  }
}

function element(tag, className, attributes = {}) {
  const made = document.createElement(tag);
  made.className = className;
  for (const [name, value] of Object.entries(attributes)) {
    made.setAttribute(name, value);
  }
  return made;
}

function setText(cell, text) {
  if (cell.textContent !== text) {
    cell.textContent = text;
  }
}
