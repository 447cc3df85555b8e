"""Upload an exported folder to the Hugging Face hub."""

from pathlib import Path

from sae_cli.errors import UserError


def push(folder: Path, repository: str, private: bool) -> str:
    """Upload a folder into a model repository, made if it is not there; return its address.

    Raises UserError naming the repository: no token, no permission, no connection.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repository, commit_message="sae export")
    except Exception as error:  # HTTP, token, offline and validation errors share no base class
        line = " ".join(str(error).split())[:300]
        raise UserError(
            f"--push-to-hub {repository}: {line}; the folder is written, log in with `hf auth login` and try again"
        ) from error
    return str(url)
