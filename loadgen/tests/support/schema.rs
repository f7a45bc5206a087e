//! A small validator of JSON Schema, 2020-12, limited to the keywords of the published schemas. It panics at an unknown
//! keyword, so that no schema passes unchecked.

use serde_json::{Map, Value};

pub(crate) struct Schema<'a> {
    root: &'a Value,
    /// A property that the schema does not name is an error: every written field must be described.
    closed: bool,
}

/// The schema as the program prints it.
pub(crate) fn published(which: &str) -> Value {
    let (code, out, err) = crate::program::loadgen(&["schema", which]);
    assert_eq!(code, 0, "{err}");
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{which}: {e}"))
}

const ANNOTATIONS: &[&str] =
    &["$schema", "$id", "$defs", "title", "description", "examples", "default"];

impl<'a> Schema<'a> {
    pub(crate) fn closed(root: &'a Value) -> Self {
        Self { root, closed: true }
    }
    pub(crate) fn open(root: &'a Value) -> Self {
        Self { root, closed: false }
    }

    /// All violations, each with its path.
    pub(crate) fn errors(&self, value: &Value) -> Vec<String> {
        let mut errors = Vec::new();
        self.check(self.root, value, "", &mut errors);
        errors
    }

    fn check(&self, schema: &Value, value: &Value, at: &str, errors: &mut Vec<String>) {
        let rules = match schema {
            Value::Bool(true) => return,
            Value::Bool(false) => return errors.push(format!("{at}: nothing is allowed here")),
            _ => schema.as_object().expect("a schema is an object or a boolean"),
        };
        for (keyword, rule) in rules {
            let fine = match keyword.as_str() {
                "$ref" => {
                    let path =
                        rule.as_str().and_then(|r| r.strip_prefix('#')).expect("a local reference");
                    let target = self.root.pointer(path).expect("the reference leads somewhere");
                    self.check(target, value, at, errors);
                    true
                }
                "type" => match rule {
                    Value::Array(any) => any.iter().any(|t| is(value, t)),
                    one => is(value, one),
                },
                "const" => value == rule,
                "enum" => rule.as_array().expect("a list").contains(value),
                "minimum" => value.as_f64().is_none_or(|v| v >= rule.as_f64().expect("a number")),
                "maximum" => value.as_f64().is_none_or(|v| v <= rule.as_f64().expect("a number")),
                "minItems" => value
                    .as_array()
                    .is_none_or(|v| v.len() as u64 >= rule.as_u64().expect("a number")),
                "anyOf" => rule.as_array().expect("a list").iter().any(|s| self.holds(s, value)),
                "oneOf" => {
                    rule.as_array().expect("a list").iter().filter(|s| self.holds(s, value)).count()
                        == 1
                }
                "required" => {
                    for name in rule.as_array().expect("a list") {
                        let name = name.as_str().expect("a name");
                        if value.as_object().is_some_and(|o| !o.contains_key(name)) {
                            errors.push(format!("{at}: '{name}' is missing"));
                        }
                    }
                    true
                }
                "items" => {
                    for (i, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.check(rule, item, &format!("{at}/{i}"), errors);
                    }
                    true
                }
                "properties" | "additionalProperties" => {
                    if let Some(object) = value.as_object() {
                        self.properties(rules, keyword, object, at, errors);
                    }
                    true
                }
                other if ANNOTATIONS.contains(&other) => true,
                other => panic!("the validator does not know '{other}'"),
            };
            if !fine {
                errors.push(format!("{at}: {keyword} {rule} does not hold for {value:.80}"));
            }
        }
    }

    fn holds(&self, schema: &Value, value: &Value) -> bool {
        let mut errors = Vec::new();
        self.check(schema, value, "", &mut errors);
        errors.is_empty()
    }

    fn properties(
        &self,
        rules: &Map<String, Value>,
        keyword: &str,
        object: &Map<String, Value>,
        at: &str,
        errors: &mut Vec<String>,
    ) {
        let known = rules.get("properties").and_then(Value::as_object);
        let rest = rules.get("additionalProperties");
        for (name, value) in object {
            let here = format!("{at}/{name}");
            match (keyword, known.and_then(|k| k.get(name))) {
                ("properties", Some(schema)) => self.check(schema, value, &here, errors),
                ("properties", None) if rest.is_none() && self.closed => {
                    errors.push(format!("{here}: not in the schema"));
                }
                ("additionalProperties", None) => {
                    self.check(rest.expect("its own rule"), value, &here, errors);
                }
                _ => {}
            }
        }
    }
}

fn is(value: &Value, name: &Value) -> bool {
    match name.as_str().expect("a type's name") {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "number" => value.is_number(),
        "integer" => {
            value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|f| f.fract() == 0.0)
        }
        other => panic!("no type '{other}'"),
    }
}
