"""Manifests of schema 1, which earlier versions wrote."""

from __future__ import annotations

import copy
import json

import pytest
from helpers import DATA

from trt_native.errors import PlanError
from trt_native.plans.manifest import Manifest
from trt_native.plans.schema_1 import from_schema_1

GOLDEN = json.loads((DATA / "plan_manifest_2.json").read_text())


class TestSchema1:
    """Manifests that earlier versions wrote."""

    OLD = json.loads((DATA / "plan_manifest_1.json").read_text())

    def test_loads(self, validator):
        manifest = Manifest.from_json(self.OLD)
        assert manifest.passes == ()
        new = {**manifest.to_json(), "passes": GOLDEN["passes"]}
        assert new == GOLDEN
        validator.validate(json.loads(json.dumps(manifest.to_json())))

    def test_reports_become_passes(self, validator):
        report = {"target": "fp16", "reduced": {"Conv": 2}, "kept": {}, "casts": 1}
        precision = {
            **self.OLD["precision"],
            "rewritten": report,
            "quantized": {"quantized": {"MatMul": 1}, "coverage": 1.0},
            "mended": {"Mean": 2, "Trilu": 1},
            "split_products": {"Conv": 3},
            "pinned_fp32_nodes": 4,
        }
        manifest = Manifest.from_json({**self.OLD, "precision": precision})
        assert manifest.precision == self.OLD["precision"]
        assert [record["name"] for record in manifest.passes] == [
            "pin_fp32_nodes",
            "quantize",
            "autocast",
            "parser_workarounds",
            "split_fp32_products",
        ]
        records = {record["name"]: record for record in manifest.passes}
        assert records["autocast"].items() >= report.items()
        assert records["quantize"]["coverage"] == 1.0
        assert records["parser_workarounds"]["nodes"] == {"Mean": 2, "Trilu": 1}
        assert records["parser_workarounds"]["summary"] == "parser_workarounds: 2 Mean, 1 Trilu"
        validator.validate(json.loads(json.dumps(manifest.to_json())))

    def test_options_have_their_new_names(self):
        options = {
            "opt_profile": True,
            "precision": "int8",
            "quantization": {"data": "d", "skip": ["a"]},
        }
        config = Manifest.from_json({**self.OLD, "options": options}).build_config()
        assert config.add_opt_shape_profiles
        assert config.quantization.calibration_data == "d"
        assert config.quantization.exclude == ("a",)

    @pytest.mark.parametrize(
        "precision", ["fp16", {"requested": "a", "applied": "b", "mended": "x"}]
    )
    def test_malformed(self, precision):
        with pytest.raises(PlanError, match="malformed manifest"):
            Manifest.from_json({**self.OLD, "precision": precision})

    def test_the_old_manifest_itself_stays(self):
        options = {"opt_profile": True, "quantization": {"data": "d"}}
        precision = {**self.OLD["precision"], "split_products": {"Conv": 3}}
        data = {**self.OLD, "precision": precision, "options": options}
        before = copy.deepcopy(data)
        assert from_schema_1(data)["schema"] == 2
        assert data == before

    @pytest.mark.parametrize("name", ["precision", "options"])
    def test_missing_properties(self, name):
        data = {key: value for key, value in self.OLD.items() if key != name}
        with pytest.raises(KeyError, match=name):
            from_schema_1(data)
        with pytest.raises(PlanError, match="malformed manifest"):
            Manifest.from_json(data)
