"""The kernels in plain NumPy: their definition, for the tests to compare with, and the baseline of the benches.

Names, arguments and results are those of the compiled modules ``_sum_tree``, ``_ring``, ``_append``, ``_draw``,
``_sequences`` and ``_frames``, to the last bit; their sources in ``csrc/`` draw the memory layouts. No module of the
package imports this one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastrl.replay.marks import FINAL, ROW, TERMINATED

_Int = NDArray[np.int64]
_Byte = NDArray[np.uint8]
_Float = NDArray[np.float32]
_Double = NDArray[np.float64]


# --- _sum_tree ---------------------------------------------------------------------------------------


def bad_index(index: _Int, count: int) -> int:
    """Return the position of the first index outside [0, count), or -1."""
    return _first((index < 0) | (index >= count))


def bad_number(numbers: _Double, most: float) -> int:
    """Return the position of the first number outside [0, most], or -1."""
    return _first(~((numbers >= 0) & (numbers <= most)))


def _first(bad: NDArray[np.bool_]) -> int:
    return int(np.argmax(bad)) if bad.any() else -1


def set_leaves(nodes: _Double, offsets: _Int, leaves: _Int, weights: _Double) -> None:
    """Write leaves (of a repeated leaf the last wins) and rebuild every sum above them."""
    for leaf, weight in zip(leaves, weights, strict=True):
        nodes[leaf] = weight
    for level in range(1, len(offsets)):
        parents = np.unique(leaves >> (3 * level))
        c = nodes[offsets[level - 1] + 8 * parents[:, None] + np.arange(8)].T
        nodes[offsets[level] + parents] = ((c[0] + c[1]) + (c[2] + c[3])) + ((c[4] + c[5]) + (c[6] + c[7]))


def find_leaves(nodes: _Double, offsets: _Int, targets: _Double, leaves: _Int) -> None:
    """Put into ``leaves`` the leaf under each target; overwrites ``targets``."""
    leaves[:] = 0
    for level in range(len(offsets) - 2, -1, -1):
        children = nodes[offsets[level] + 8 * leaves[:, None] + np.arange(8)]  # [B, 8]
        upto = np.cumsum(children, axis=1)
        passed = (targets[:, None] >= upto).sum(axis=1)
        child = np.minimum(passed, 7)
        query = np.arange(len(leaves))
        lost = passed == 8  # rounding carried the target past the end
        last = 7 - np.argmax(children[:, ::-1] > 0, axis=1)  # the last child of weight above 0
        last[~(children > 0).any(axis=1)] = 0
        child = np.where(lost, last, child)
        before = np.where(child > 0, upto[query, np.maximum(child, 1) - 1], 0.0)
        targets[:] = np.where(lost, children[query, child], targets - before)
        leaves[:] = 8 * leaves + child


def draw_leaves(nodes: _Double, offsets: _Int, uniforms: _Double, leaves: _Int) -> None:
    """Put into ``leaves`` one leaf from each of B equal strata of the sum, as ``uniforms`` choose; overwrites these."""
    total, size = nodes[-1], len(uniforms)
    uniforms[:] = np.minimum((np.arange(size) + uniforms) * (total / size), total)
    find_leaves(nodes, offsets, uniforms, leaves)


# --- _ring -------------------------------------------------------------------------------------------


class Rings:
    """Columns and cursors of the rings."""

    def __init__(
        self,
        rows: int,
        stack: int,
        n_step: int,
        count: _Int,
        pending: _Int,
        ended: _Byte,
        opens: _Byte,
        first: _Byte,
        reward: _Float,
        mark: _Byte,
        drawable: _Byte,
    ) -> None:
        self.rows, self.stack, self.n_step = rows, stack, n_step
        self.count, self.pending, self.ended, self.opens = count, pending, ended, opens
        self.first, self.reward, self.mark, self.drawable = first, reward, mark, drawable

    def push(
        self, env: _Int, in_reward: _Float, in_mark: _Byte, in_first: NDArray[np.int8], slots: _Int, changed: _Int
    ) -> int:
        """Append one row to the ring of each ``env[i]``; return how many slots ``changed`` names."""
        found: list[int] = []
        for i, e in enumerate(env.tolist()):
            slots[i] = e * self.rows + self.count[e] % self.rows
            self._push_row(e, in_reward[i], int(in_mark[i]), int(in_first[i]), found)
        changed[: len(found)] = found
        return len(found)

    def locate(self, index: _Int, slots: _Int, alive: _Byte) -> int:
        """Put into ``slots`` and ``alive`` where rows live and whether they may be drawn.

        Returns the position of the first name that is no row's, or -1.
        """
        row, env = np.divmod(index, len(self.count))
        unknown = np.flatnonzero((row < 0) | (row >= self.count[env]))
        if len(unknown):
            return int(unknown[0])
        slots[:] = env * self.rows + row % self.rows
        alive[:] = (row >= self.count[env] - self.rows) & (self.drawable[slots] != 0)
        return -1

    def _push_row(self, e: int, in_reward: np.float32, in_mark: int, in_first: int, found: list[int]) -> None:
        base, rows, new = e * self.rows, self.rows, int(self.count[e])
        slot = base + new % rows
        final = bool(self.ended[e]) and in_first != 1
        is_first = not final and (new == 0 or bool(self.opens[e] if in_first < 0 else in_first))

        def switch(slot: int, may_be_drawn: bool) -> None:
            if self.drawable[slot] != may_be_drawn:
                self.drawable[slot] = may_be_drawn
                found.append(slot)

        switch(slot, False)
        if new >= rows:
            for r in range(new - rows + 1, new - rows + self.stack):
                if self.first[base + r % rows]:
                    break
                switch(base + r % rows, False)

        self.first[slot] = is_first
        self.reward[slot] = 0 if final else in_reward
        self.mark[slot] = FINAL if final else in_mark
        self.count[e] = new + 1
        self.opens[e] = final
        self.ended[e] = not final and in_mark != ROW

        if is_first:
            self.pending[e] = new
        closed = new if final else new - self.n_step + 1  # windows of rows before this one are closed
        for r in range(int(self.pending[e]), closed):
            switch(base + r % rows, True)
            self.pending[e] = r + 1
        if final:
            self.pending[e] = new + 1


# --- _append -----------------------------------------------------------------------------------------


class Column:
    """One array of a row; an `Appender` that declines asks nothing of it."""

    def __init__(self, *_: object, **__: object) -> None: ...


class Appender:
    """Declines every vector step, so that all take the plain path."""

    def __init__(self, *_: object) -> None: ...

    def add(self, *_: object) -> None:
        """Decline."""

    def extend(self, *_: object) -> None:
        """Decline."""


# --- _draw -------------------------------------------------------------------------------------------


class Drawer:
    """Draws from rings and tree."""

    def __init__(
        self,
        rows: int,
        zero: bool,
        powers: _Double,
        nodes: _Double,
        offsets: _Int,
        count: _Int,
        first: _Byte,
        reward: _Float,
        mark: _Byte,
        action: _Byte,
    ) -> None:
        self.rows, self.zero, self.powers, self.nodes, self.offsets = rows, zero, powers, nodes, offsets
        self.count, self.first, self.reward, self.mark, self.action = count, first, reward, mark, action

    def draw(
        self, uniforms: _Double, action: _Byte, returns: _Float, discounts: _Float, index: _Int, numbers: _Int
    ) -> None:
        """Draw B rows, one from each of B equal strata of the sum, at the places that ``uniforms [B]`` choose.

        Overwrites ``uniforms`` with the ratio of each row's weight to the least of them. Puts their actions (as bytes),
        n-step returns, discounts and names into arrays ``[B]``, and the frames of both their stacks, oldest first, into
        ``numbers [2, B, stack]``.
        """
        slots = np.empty_like(index)
        draw_leaves(self.nodes, self.offsets, uniforms, slots)
        with np.errstate(over="ignore"):  # infinity if they are too far apart
            uniforms[:] = self.nodes[slots] / self.nodes[slots].min()
        action[:] = self.action[slots]
        env, t = np.divmod(slots, self.rows)
        newest = self.count[env] - 1
        index[:] = (newest - (newest - t) % self.rows) * len(self.count) + env
        self._stacks(slots, numbers[0])
        self._stacks(self._walk(slots, returns, discounts), numbers[1])

    def _stacks(self, slots: _Int, numbers: _Int) -> None:
        slot, inside = slots, np.ones(len(slots), bool)
        numbers[:, -1] = slot
        for k in range(numbers.shape[1] - 2, -1, -1):
            inside &= self.first[slot] == 0
            slot = np.where(inside, slot // self.rows * self.rows + (slot - 1) % self.rows, slot)
            numbers[:, k] = np.where(inside | (not self.zero), slot, -1)

    def _walk(self, slots: _Int, returns: _Float, discounts: _Float) -> _Int:
        slot, total = slots, np.zeros(len(slots))
        length, end = np.zeros(len(slots), np.int64), np.zeros(len(slots), np.uint8)
        for k in range(len(self.powers) - 1):
            going = end == 0
            total = np.where(going, total + self.powers[k] * self.reward[slot], total)
            end = np.where(going, self.mark[slot], end)
            slot = np.where(going, slot // self.rows * self.rows + (slot + 1) % self.rows, slot)
            length += going
        returns[:] = total
        discounts[:] = np.where(end == TERMINATED, 0.0, self.powers[length])
        return slot


# --- _sequences --------------------------------------------------------------------------------------


class Stretches:
    """Reads stretches from rings and tree."""

    def __init__(
        self,
        rows: int,
        stack: int,
        zero: bool,
        gamma: float,
        nodes: _Double,
        oldest: _Int,
        count: _Int,
        first: _Byte,
        reward: _Float,
        mark: _Byte,
        action: _Byte,
    ) -> None:
        self.rows, self.stack, self.zero, self.gamma, self.nodes = rows, stack, zero, gamma, nodes
        self.oldest, self.count, self.first, self.reward, self.mark = oldest, count, first, reward, mark
        self.action = action

    def unfinished(self, length: int, slots: _Int) -> int:
        """Put into ``slots`` the rows of games in progress with fewer than ``length`` steps yet; return how many."""
        found: list[int] = []
        for env, (oldest, count) in enumerate(zip(self.oldest.tolist(), self.count.tolist(), strict=True)):
            rows = np.arange(max(oldest, count - length), count)
            if len(rows) and self.mark[self._at(env, count - 1)] != FINAL:
                opens = np.flatnonzero(self.first[self._at(env, rows)])
                found += self._at(env, rows[opens[-1] if len(opens) else 0 :])[::-1].tolist()
        slots[: len(found)] = found
        return len(found)

    def assemble(
        self,
        period: int,
        burn_in: int,
        index: _Int,
        weights: _Double,
        action: _Byte,
        reward: _Float,
        discount: _Float,
        mask: _Byte,
        numbers: _Int,
    ) -> None:
        """Read the B stretches whose cells hold the rows in the slots ``index [B]``, each over L steps with burn-in.

        Overwrites ``index`` with the names of their first rows and ``weights`` with the ratios of their cells' weights
        to the least of them. Puts actions (as bytes, ``[B L, bytes]``), rewards, discounts and masks of single steps
        into arrays ``[B, L]``, and the frames into ``numbers [B, stack - 1 + L + 1]``: those of the first step's stack,
        then one a row.
        """
        steps = mask.shape[1]
        for array in (action, reward, discount, mask):
            array[:] = 0
        numbers[:] = -1
        for b, chosen in enumerate(index.tolist()):
            env, t = divmod(chosen, self.rows)
            newest = int(self.count[env]) - 1
            row = newest - (newest - t) % self.rows
            game = self._game(env, row)
            cell = game[game // period == row // period]
            cell_weights = self.nodes[self._at(env, cell)]
            start = int(cell[cell_weights > 0][0])
            index[b], weights[b] = start * len(self.count) + env, sum(cell_weights.tolist())

            at_opening = self.first[self._at(env, game[0])] != 0
            whole = game if at_opening else game[self.stack - 1 :]
            usable = (whole >= start - burn_in) & (whole <= start) & (self.mark[self._at(env, whole)] != FINAL)
            begin = int(whole[usable][0]) if usable.any() else start
            place = burn_in - (start - begin)
            span = game[(game >= begin) & (game <= begin + steps - place)]  # frames
            slots, end = self._at(env, span), place + len(span) - 1
            taken = np.flatnonzero(self.mark[slots[:-1]] != FINAL)
            action[b * steps + place + taken] = self.action[slots[taken]]
            reward[b, place + taken] = self.reward[slots[taken]]
            discount[b, place + taken] = np.where(self.mark[slots[taken]] == TERMINATED, 0.0, self.gamma)
            mask[b, place + taken] = 1
            numbers[b, place + self.stack - 1 : end + self.stack] = slots
            older = game[(game < begin) & (game > begin - self.stack)]
            pads = self.stack - 1 - len(older)
            pad = -1 if self.zero else self._at(env, game[0])
            numbers[b, place : place + self.stack - 1] = [*[pad] * pads, *self._at(env, older)]
        with np.errstate(over="ignore"):
            weights /= weights.min()

    def _game(self, env: int, row: int) -> _Int:
        """Return the rows of a row's game that are held."""
        rows = np.arange(self.oldest[env], self.count[env])
        opens = rows[self.first[self._at(env, rows)] != 0]
        begin = max([self.oldest[env], *opens[opens <= row]])
        end = min([self.count[env], *opens[opens > row]])
        return np.arange(begin, end)

    def _at(self, env: int, row: _Int) -> _Int:
        """Return the slots of rows."""
        return env * self.rows + row % self.rows


# --- _frames -----------------------------------------------------------------------------------------


def gather(frames: _Byte, numbers: _Int, out: _Byte, begin: int, end: int) -> None:
    """Copy the frames ``numbers[b, k]``, as bytes, into ``out[b K + k]``, for b from begin to end."""
    part, to = numbers[begin:end].reshape(-1), out[begin * numbers.shape[1] : end * numbers.shape[1]]
    np.take(frames, np.maximum(part, 0), axis=0, out=to, mode="clip")
    to[part < 0] = 0


def gather_both(frames: _Byte, numbers: _Int, one: _Byte, other: _Byte, begin: int, end: int) -> None:
    """Gather ``numbers[0]`` into ``one`` and ``numbers[1]`` into ``other``, as `gather` does."""
    gather(frames, numbers[0], one, begin, end)
    gather(frames, numbers[1], other, begin, end)


class Crew:
    """Copies alone: threads change nothing but the time it takes."""

    def __init__(self, looks: int) -> None: ...

    def serve(self) -> None:
        """Return at once."""

    def stop(self) -> None:
        """Stop nothing."""

    def gather(self, frames: _Byte, numbers: _Int, one: _Byte, other: _Byte, piece: int) -> None:
        """Do as `gather_both`, or where ``numbers`` is ``[1, B, stack]`` as `gather`."""
        for k, out in enumerate((one, other)[: len(numbers)]):
            gather(frames, numbers[k], out, 0, numbers.shape[1])
