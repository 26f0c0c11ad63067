"""`pictish ui`: a web page that draws, edits, describes and looks inside images."""

from pictish.commands import options
from pictish.commands.serve import Config, Host, Port, run_server


def run(
    *,
    model: options.Model = "starter",
    adaptor_folder: options.AdaptorFolders = None,
    config: Config = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    precision: options.Digits = options.Precision.float32,
    device: options.Device = "auto",
) -> None:
    """Serve a web page on the model, and the API of `pictish serve`, until Ctrl-C or SIGTERM.

    Open the printed address in a browser. The page loads nothing from elsewhere.
    """
    try:
        from pictish.ui.page import add_page
    except ImportError as error:
        raise ValueError(f"{error.name} is missing; pip install 'pictish[ui]'") from None
    run_server(model, config, host, port, precision, device, add_page, adaptor_folder or ())
