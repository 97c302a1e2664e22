"""A window that shows the pictures of a game while it is played."""

from __future__ import annotations

import os

from fastrl.base.errors import NoWindowError, Stopped
from fastrl.base.extras import extra
from fastrl.film.picture import Picture

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
with extra("train"):
    import pygame

WINDOW_HEIGHT = 640
OF_SCREEN = 0.85
"""Share of each side of the screen that a window takes at most: bars and frames need some."""


class Window:
    """A window that shows pictures at the pace of the game. Closing the emulator's own would end the process.

    Parameters
    ----------
    title : str
        Title of the window.
    pictures_per_second : float
        `draw` waits to keep to it.

    Raises
    ------
    NoWindowError
        If there is no display.

    Attributes
    ----------
    shown : bool
        Whether it has shown a picture.
    """

    def __init__(self, title: str, pictures_per_second: float) -> None:
        self._pace = pictures_per_second
        self.shown = False
        try:
            pygame.display.init()
            driver = pygame.display.get_driver()
        except pygame.error as error:
            raise _no_display(str(error)) from error
        # Where no display answers, pygame falls back to these, which show nothing. Unless the user named one, refuse.
        if driver in ("offscreen", "dummy") and driver != os.environ.get("SDL_VIDEODRIVER"):
            pygame.display.quit()
            raise _no_display("no display answers")
        pygame.display.set_caption(title)
        self._clock = pygame.time.Clock()

    def draw(self, picture: Picture) -> None:
        """Show a picture until the next one is due.

        Raises
        ------
        NoWindowError
            If there is a display, but no window can be opened on it.
        Stopped
            Once the user has closed the window.
        """
        surface = pygame.surfarray.make_surface(picture.swapaxes(0, 1))  # pygame counts x first
        window = pygame.display.get_surface()
        if window is None:
            try:
                columns, rows = pygame.display.get_desktop_sizes()[0]
                most = min(WINDOW_HEIGHT, OF_SCREEN * rows) / picture.shape[0], OF_SCREEN * columns / picture.shape[1]
                factor = max(1, int(min(most)))
                size = (picture.shape[1] * factor, picture.shape[0] * factor)
                window = pygame.display.set_mode(size, pygame.RESIZABLE)
            except (pygame.error, IndexError) as error:
                raise _no_display(str(error)) from error
        window.blit(pygame.transform.scale(surface, window.get_size()), (0, 0))
        pygame.display.flip()
        self.shown = True
        for event in pygame.event.get():
            if event.type == pygame.QUIT or (event.type == pygame.KEYDOWN and event.key == pygame.K_ESCAPE):
                raise Stopped
        self._clock.tick(self._pace)

    def close(self) -> None:
        """Close the window."""
        pygame.display.quit()


def _no_display(reason: str) -> NoWindowError:
    return NoWindowError(f"no window can be opened ({reason})")
