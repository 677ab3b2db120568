"""The model of a run on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from danling.callback import Callback, Priority
from danling.checkpoint.exporting import (
    Saved,
    Which,
    checked_which,
    saved_weights,
    write_safetensors,
)
from danling.config import Config
from danling.errors import CallbackError
from danling.identity.redaction import mask_values
from danling.metrics.history import flatten

if TYPE_CHECKING:
    from danling.runner.accelerate import AccelerateRunner as Runner

__all__ = ["HubPush"]


class HubPush(Callback):
    """Push the weights of the best, or the last, checkpoint to the Hugging Face Hub.

    At the end of the training one commit has `model.safetensors`, the configuration as
    `runner.yaml`, its secrets masked, and, where there is none in the repository yet, `README.md`
    with the best result. The repository is made if it is not there. The token is that of
    `huggingface_hub`, of `hf auth login` or in `HF_TOKEN`, and in no file of the run. What fails
    is a warning: the training has ended, and its checkpoints are there.

    It reads a checkpoint and waits for the upload at the end of the training; a step costs nothing,
    and there is no state.

    Args:
        repo_id: The repository, as `"user/model"`.
        which: The checkpoint that is pushed, `"best"` or `"latest"`.
        private: Whether a repository that is made is private.
        revision: The branch; None: the main one.
        endpoint: The address of another hub; None: that of `huggingface_hub`.

    Attributes:
        commit_url: The address of the commit; None before it.

    Raises:
        CallbackError: An argument cannot be meant, or huggingface_hub or safetensors is not
            installed.

    Example:
        >>> HubPush("user/digits").repo_id  # doctest: +SKIP
        'user/digits'
    """

    name = "hub_push"
    priority = Priority.LOWEST + 1  # after the checkpoint
    only_watches = True

    def __init__(
        self,
        repo_id: str,
        which: Which = "best",
        *,
        private: bool = True,
        revision: str | None = None,
        endpoint: str | None = None,
    ) -> None:
        self.which = checked_which("HubPush", which)
        try:
            self._hub: Any = import_module("huggingface_hub")
            import_module("safetensors.torch")
        except ImportError as error:
            raise CallbackError(
                "HubPush needs huggingface_hub and safetensors: "
                "pip install huggingface_hub safetensors"
            ) from error
        try:
            import_module("huggingface_hub.utils").validate_repo_id(repo_id)
        except ValueError as error:
            raise CallbackError(f"HubPush({repo_id!r}): {error}") from error
        self.repo_id = repo_id
        self.private = private
        self.revision = revision
        self.endpoint = endpoint
        self.commit_url: str | None = None

    def on_train_end(self, runner: Runner) -> None:
        """Push; the last checkpoint was saved before this hook."""
        if runner.has_dir:
            runner.world.on_main(lambda: self._push(runner))

    def _push(self, runner: Runner) -> None:
        saved = saved_weights(runner.checkpoints, self.which)
        if saved is None:
            runner.logger.warning("%s: there is no %s.pth to push", self.name, self.which)
            return
        try:
            with TemporaryDirectory() as folder:
                self._upload(runner, saved, Path(folder))
        except Exception as error:  # whatever the hub or the way to it raises
            text = str(error).strip().partition("\n")[0]
            runner.logger.warning(
                "%s: nothing was pushed to %s: %s: %s",
                self.name,
                self.repo_id,
                type(error).__name__,
                text,
            )
            return
        runner.logger.info("%s: %s.pth is at %s", self.name, self.which, self.commit_url)

    def _upload(self, runner: Runner, saved: Saved, folder: Path) -> None:
        hub = self._hub.HfApi(endpoint=self.endpoint, library_name="danling")
        hub.create_repo(self.repo_id, private=self.private, exist_ok=True)
        write_safetensors(folder / "model.safetensors", saved.weights, saved.metadata)
        masked = mask_values(runner.config.to_dict())
        Config(masked).save(folder / "runner.yaml")
        if not hub.file_exists(self.repo_id, "README.md", revision=self.revision):
            text = card(self.repo_id, saved.metadata, runner.best_result or {})
            (folder / "README.md").write_text(text, encoding="utf-8")
        commit = hub.upload_folder(
            repo_id=self.repo_id,
            folder_path=folder,
            commit_message=f"{self.which}.pth of {runner.id}",
            revision=self.revision,
        )
        self.commit_url = str(commit.commit_url)


def card(repo_id: str, metadata: Mapping[str, str], result: Mapping[str, Any]) -> str:
    """A model card with the values of a result.

    Example:
        >>> print(card("user/digits", {"id": "1-2-3"}, {"epoch": 2, "val": {"loss": 0.25}}))
        ---
        tags:
        - danling
        ---
        # digits
        <BLANKLINE>
        Trained with DanLing, in the run `1-2-3`.
        <BLANKLINE>
        | metric | value |
        |---|---|
        | val/loss | 0.25 |
        <BLANKLINE>
    """
    lines = ["---", "tags:", "- danling", "---", f"# {repo_id.rpartition('/')[2]}", ""]
    lines += [f"Trained with DanLing, in the run `{metadata['id']}`.", ""]
    if values := flatten(result):
        lines += ["| metric | value |", "|---|---|"]
        lines += [f"| {tag} | {value:.6g} |" for tag, value in values.items()]
    return "\n".join(lines) + "\n"
