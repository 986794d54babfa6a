//! Holds JSON against the schemas that are handed out in `dist/schema`. As strict as consumers must not be: what a schema does
//! not mention is an error here, in the output as well as in the schema itself.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Map, Value};

/// What a keyword may be beside those that constrain.
const ANNOTATIONS: [&str; 6] = ["$schema", "$defs", "title", "description", "format", "default"];

/// A schema, and the definitions in it.
pub(crate) struct Schema(Value);

impl Schema {
    /// The one of this name.
    pub(crate) fn named(name: &str) -> Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/schema").join(format!("{name}.json"));
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(Self(serde_json::from_str(&text)?))
    }

    /// All that there are.
    pub(crate) fn names() -> Result<Vec<String>> {
        let mut names = Vec::new();
        for file in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/schema"))? {
            let name = file?.file_name().into_string().ok().context("a strange name")?;
            names.push(name.strip_suffix(".json").context(name.clone())?.to_owned());
        }
        Ok(names)
    }

    /// Whether this is what it describes, and nothing besides.
    pub(crate) fn check(&self, value: &Value) -> Result<()> {
        self.judge_whole(&self.0, value).context("the line")
    }

    /// Judges a value, all of whose properties the schema must mention in one of its parts.
    fn judge_whole(&self, schema: &Value, value: &Value) -> Result<()> {
        let mentioned = self.judge(schema, value)?;
        for name in value.as_object().into_iter().flat_map(Map::keys) {
            ensure!(mentioned.contains(name), "{name} is not in the schema");
        }
        Ok(())
    }

    /// Judges a value by a part of a schema. Returns the properties that this part mentions.
    fn judge(&self, schema: &Value, value: &Value) -> Result<BTreeSet<String>> {
        let object = value.as_object();
        let all = || object.into_iter().flat_map(Map::keys).cloned().collect();
        let schema = match schema {
            Value::Bool(true) => return Ok(all()),
            Value::Object(schema) => schema,
            other => bail!("not a schema: {other}"),
        };
        let mut mentioned = BTreeSet::new();
        for (keyword, said) in schema {
            match keyword.as_str() {
                "type" => ensure!(is_of(said, value), "{value} is not of type {said}"),
                "const" => ensure!(said == value, "{value} is not {said}"),
                "minimum" => {
                    ensure!(!value.is_number() || value.as_f64() >= said.as_f64(), "{value} is below {said}");
                }
                "maximum" => {
                    ensure!(!value.is_number() || value.as_f64() <= said.as_f64(), "{value} is above {said}");
                }
                "$ref" => mentioned.extend(self.judge(self.definition(said)?, value)?),
                "anyOf" | "oneOf" => mentioned.extend(self.judge_choice(said, value)?),
                "items" => {
                    for (at, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.judge_whole(said, item).with_context(|| format!("[{at}]"))?;
                    }
                }
                "required" => {
                    for name in said.as_array().into_iter().flatten().filter_map(Value::as_str) {
                        ensure!(value.get(name).is_some(), "{name} is missing in {value}");
                    }
                }
                "properties" => {
                    for (name, property) in said.as_object().into_iter().flatten() {
                        if let Some(inner) = value.get(name) {
                            self.judge_whole(property, inner).with_context(|| name.clone())?;
                            mentioned.insert(name.clone());
                        }
                    }
                }
                "additionalProperties" => {
                    let known = schema.get("properties").and_then(Value::as_object);
                    for (name, inner) in object.into_iter().flatten() {
                        if known.is_none_or(|known| !known.contains_key(name)) {
                            self.judge_whole(said, inner).with_context(|| name.clone())?;
                            mentioned.insert(name.clone());
                        }
                    }
                }
                annotation if ANNOTATIONS.contains(&annotation) => {}
                unknown => bail!("this test knows nothing of the keyword {unknown}"),
            }
        }
        Ok(mentioned)
    }

    fn judge_choice(&self, choices: &Value, value: &Value) -> Result<BTreeSet<String>> {
        let mut why = Vec::new();
        for choice in choices.as_array().context("not a list of choices")? {
            match self.judge(choice, value) {
                Ok(mentioned) => return Ok(mentioned),
                Err(error) => why.push(format!("{error:#}")),
            }
        }
        bail!("none of the choices: {}", why.join("; or "))
    }

    fn definition(&self, reference: &Value) -> Result<&Value> {
        let pointer = reference.as_str().and_then(|reference| reference.strip_prefix('#'));
        pointer.and_then(|pointer| self.0.pointer(pointer)).with_context(|| format!("no {reference}"))
    }
}

fn is_of(types: &Value, value: &Value) -> bool {
    let is = |name: &Value| match name.as_str() {
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        _ => false,
    };
    types.as_array().map_or_else(|| is(types), |types| types.iter().any(is))
}

/// Refuses numbers that hide in strings with their units.
pub(crate) fn has_exact_numbers(value: &Value) -> Result<()> {
    match value {
        Value::String(text) => {
            let digits = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
            let unit = digits.trim_start();
            let units = ["ns", "us", "ms", "s", "m", "h", "B", "KB", "MB", "KiB", "MiB", "%", "/s", "pps"];
            ensure!(digits.len() == text.len() || !units.contains(&unit), "{text} is a number with a unit");
            Ok(())
        }
        Value::Array(values) => values.iter().try_for_each(has_exact_numbers),
        Value::Object(map) => map.values().try_for_each(has_exact_numbers),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

#[test]
fn what_a_schema_does_not_describe_is_refused() {
    use serde_json::json;
    let schema = Schema(json!({
        "type": "object",
        "properties": {
            "a": {"type": ["integer", "null"], "minimum": 0},
            "list": {"type": "array", "items": {"$ref": "#/$defs/one"}},
            "map": {"type": "object", "additionalProperties": {"type": "boolean"}},
        },
        "required": ["a"],
        "oneOf": [
            {"properties": {"kind": {"const": "one"}, "of-one": {"type": "boolean"}}, "required": ["kind"]},
            {"properties": {"kind": {"const": "two"}}},
        ],
        "$defs": {"one": {"oneOf": [{"const": "x", "type": "string"}, {"type": "null"}]}},
    }));
    schema.check(&json!({"a": 1, "list": ["x", null], "map": {"any": true}})).unwrap();
    schema.check(&json!({"a": 1, "kind": "one", "of-one": true})).unwrap();
    for wrong in [
        json!({}),
        json!({"a": 1, "kind": "three"}),
        json!({"a": 1, "kind": "two", "of-one": true}),
        json!({"a": -1}),
        json!({"a": 1.5}),
        json!({"a": "1"}),
        json!({"a": 1, "b": 2}),
        json!({"a": 1, "list": ["y"]}),
        json!({"a": 1, "list": "x"}),
        json!({"a": 1, "map": {"any": 1}}),
        json!([]),
    ] {
        assert!(schema.check(&wrong).is_err(), "{wrong}");
    }
    assert!(Schema(json!({"pattern": "^x"})).check(&json!("x")).is_err());
    for (text, is_exact) in [
        ("5ms", false),
        ("91.2%", false),
        ("7 s", false),
        ("1.5", true),
        ("1500", true),
        ("10.0.0.1:80", true),
        ("ms", true),
    ] {
        assert_eq!(has_exact_numbers(&json!([{"x": text}])).is_ok(), is_exact, "{text}");
    }
}
