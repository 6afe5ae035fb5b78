"""Prints JSON Schemas of OCSF classes: {"CLASS PROFILE,PROFILE": schema}. Arguments are the keys."""
import importlib.resources
import json
import sys

from ocsf_json_schema.embedded import OcsfJsonSchemaEmbedded
from ocsf_json_schema.schema import OcsfJsonSchema

export = importlib.resources.files("ocsf_json_schema") / "ocsf" / "1.8.0.json"
ocsf = OcsfJsonSchemaEmbedded(OcsfJsonSchema(json.loads(export.read_text("utf-8"))))
out = {}
for key in sys.argv[1:]:
    uid, profiles = key.split(" ")
    out[key] = ocsf.get_class_schema(ocsf.lookup_class_name_from_uid(int(uid)), profiles.split(","))
json.dump(out, sys.stdout)
