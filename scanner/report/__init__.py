"""What leaves the process: JSON, SARIF, tables."""

from scanner.report.contract import JSON_SCHEMA_VERSION, result_object, scan_document, strict_json
from scanner.report.sarif import sarif_document

__all__ = ["JSON_SCHEMA_VERSION", "result_object", "sarif_document", "scan_document", "strict_json"]
