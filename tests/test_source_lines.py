"""What looks like a secret in a line of code is masked; what only looks like that is quoted as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradcam_callback.source_lines import mask_secrets, source_line

HEX = "0123456789abcdef" * 2
MIXED = "aB3" * 14


@pytest.mark.parametrize(
    ("line", "masked"),
    [
        ('    password = "hunter2"', '    password = "***"'),
        ("db.connect(user='bob', passwd='hunter2')", 'db.connect(user="***", passwd="***")'),
        ('API_KEY: str = "abc"  # of the lab', 'API_KEY: str = "***"  # of the lab'),
        ('os.environ["WANDB_API_KEY"] = "abc"', 'os.environ["***"] = "***"'),
        ('os.getenv("SECRET", "abc")', 'os.getenv("***", "***")'),
        ('headers = {"Authorization": f"Bearer {token} abc"}', 'headers = {"***": "***"}'),
        ('auth = ("bob", "hunter2")', 'auth = ("***", "***")'),
        ('if token == "abc":', 'if token == "***":'),
        ('login("host=db password=hunter2")', 'login("***")'),
        ("run(\"curl -H 'Authorization: Bearer abcdefgh1'\")", 'run("***")'),
        ('clone("https://bob:hunter2@host/x.git")', 'clone("***")'),
        (f'use("{HEX}")', 'use("***")'),
        (f'use("{MIXED}")', 'use("***")'),
        ('use("AKIAABCDEFGHIJKLMNOP")', 'use("***")'),
        ('use("hf_abcdefghijklmnopqrstuvwxyz")', 'use("***")'),
        ("pwd = 12345", "pwd = ***"),
        ("x = 1  # password: hunter2", "***"),
        ("  secret: hunter2", "  ***"),
        ('  token = "never ended', '  token = "***"'),
        (f"  {HEX}", "  ***"),
        ('"-----BEGIN RSA PRIVATE KEY-----', '"***"'),
    ],
)
def test_secrets_are_masked(line: str, masked: str) -> None:
    assert mask_secrets(line) == masked
    assert mask_secrets(masked) == masked


@pytest.mark.parametrize(
    "line",
    [
        "maps = maps.detach()  # ends here",
        "tokens = self.conv(images).flatten(2)",
        "token = self.token.expand(len(images), -1, -1)",
        "x = torch.cat([self.cls_token, x], dim=1)  # the class token first",
        'x = x["cls_token"]',
        "keys, values = self.key(x), self.value(x)",
        'author = "me"',
        'words = self.tokenizer("a cat")',
        "num_tokens = 197 + self.token(0)",
        'self.add_module("layer4", FrozenResNet50BackboneWithFeaturePyramid())',
        'weights = torch.load("/home/me/checkpoints/resnet50_epoch_12_best.ckpt")',
        'image = load("https://example.org/cat.png")',
        "pooled = F.adaptive_avg_pool2d(maps, 1).flatten(1) / 16777216",
        "",
    ],
)
def test_what_is_no_secret_is_left_alone(line: str) -> None:
    assert mask_secrets(line) == line


def test_a_line_is_read_masked(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text('first = 1\n  token = "abc"   \n')
    assert source_line(str(file), 2) == '  token = "***"'
    assert source_line(str(file), 3) == ""
