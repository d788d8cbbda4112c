"Everything that this package declares is in settings.ini; this only reads it."
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
data = [str(p.relative_to("data")) for p in sorted(Path("data").rglob("*")) if p.is_file() and p.suffix != ".pyc"]

def readme():
    "README.md as another site can show it: its pictures and links point to the repository."
    text = Path("README.md").read_text(encoding="utf-8")
    text = re.sub(r"(!\[[^\]]*\]\()(?![a-z]+:)", rf"\1{cfg['git_url']}/raw/{cfg['branch']}/", text)
    return re.sub(r"(\]\()(?![a-z]+:|#)", rf"\1{cfg['git_url']}/blob/{cfg['branch']}/", text)

setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"], long_description=readme(), long_description_content_type="text/markdown",
    author=cfg["author"], author_email=cfg["author_email"], license="MIT", keywords=cfg["keywords"].split(),
    url=cfg["git_url"], project_urls={"Documentation": cfg["doc_host"] + cfg["doc_baseurl"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(), extras_require={"dev": cfg["dev_requirements"].split()},
    packages=[*find_packages(include=["dpo_nb", "dpo_nb.*"]), "dpo_nb.data"],
    package_dir={"dpo_nb.data": "data"}, package_data={"dpo_nb.data": data},
    entry_points={"console_scripts": cfg["console_scripts"].split("\n"), "nbdev": [f"{cfg['lib_name']}=dpo_nb._modidx:d"]},
    zip_safe=False,
)
