"""Triton 3.6's interpreter with numpy 2.4, which no longer takes an array of one number for a number."""

import os


def mend():
    """Where Triton interprets; newer ones do the same."""
    if not os.environ.get("TRITON_INTERPRET"):
        return
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patched
