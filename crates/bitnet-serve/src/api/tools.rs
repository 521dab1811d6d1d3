//! Tools that a model may call, and the calls in its text.
//!
//! Invariant: arguments are the text of a JSON object. A call of a function that was not offered is no call.

use super::error::ApiError;
use super::fields::{Fields, short};
use crate::constraint::compact;
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// Most tools of a request.
pub(crate) const MOST_TOOLS: usize = 128;

/// How a model's chat template shows calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ToolFormat {
    /// `{"name": …, "arguments": {…}}` between `<tool_call>` tags (Hermes, Qwen).
    Json,
    /// `<function=…>` with `<parameter=…>` between `<tool_call>` tags (Qwen3-Coder).
    Xml,
}

impl ToolFormat {
    /// The format that a template shows.
    pub(crate) fn of_template(source: &str) -> Option<Self> {
        match source.contains("<tool_call>") {
            true if source.contains("<function=") => Some(Self::Xml),
            true => Some(Self::Json),
            false => None,
        }
    }
}

/// A call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub name: String,
    pub arguments: String,
}

/// Which tools have to be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ToolChoice {
    None,
    Auto,
    Required,
    Named(String),
}

impl ToolChoice {
    /// Reads `tool_choice`.
    pub(crate) fn read(value: Option<Value>, has_tools: bool) -> Result<Self, ApiError> {
        let refused = || {
            ApiError::field(
                "tool_choice",
                "expected \"none\", \"auto\", \"required\" or {\"type\": \"function\", \"function\": {\"name\": …}}",
            )
        };
        let choice = match value {
            None if has_tools => Self::Auto,
            None => Self::None,
            Some(Value::String(word)) => match word.as_str() {
                "none" => Self::None,
                "auto" => Self::Auto,
                "required" => Self::Required,
                _ => return Err(refused()),
            },
            Some(value) => {
                let name = value.pointer("/function/name").or(value.get("name"));
                let name = name.and_then(Value::as_str).ok_or_else(refused)?;
                Self::Named(name.to_owned())
            }
        };
        match choice {
            Self::Required | Self::Named(_) if !has_tools => {
                Err(ApiError::field("tool_choice", "expected `tools` beside it"))
            }
            Self::Auto if !has_tools => Ok(Self::None),
            choice => Ok(choice),
        }
    }
}

#[derive(Debug)]
struct Function {
    name: String,
    parameters: Value,
}

/// The tools of a request.
#[derive(Debug)]
pub(crate) struct Tools {
    /// As the request gives them, for the template.
    pub list: Vec<Value>,
    functions: Vec<Function>,
    format: ToolFormat,
}

impl Tools {
    /// Checks a list of tools.
    pub(crate) fn new(list: Vec<Value>, format: ToolFormat) -> Result<Self, ApiError> {
        if list.len() > MOST_TOOLS {
            let message = format!("expected at most {MOST_TOOLS} tools, found {}", list.len());
            return Err(ApiError::field("tools", message));
        }
        let mut functions: Vec<Function> = Vec::new();
        for (number, tool) in list.iter().enumerate() {
            let place = format!("tools[{number}]");
            let mut fields = Fields::inside(&place, tool.clone())?;
            if fields.text("type")?.as_deref() != Some("function") {
                return Err(ApiError::field(
                    format!("{place}.type"),
                    "expected \"function\"",
                ));
            }
            let place = format!("{place}.function");
            let function = fields.take("function").unwrap_or(Value::Null);
            fields.finish(false)?;
            let mut fields = Fields::inside(&place, function)?;
            let is_part = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
            let name = fields.text("name")?.unwrap_or_default();
            if !(1..=64).contains(&name.len()) || !name.chars().all(is_part) {
                let message = "expected 1 to 64 letters, digits, dots, dashes or underscores";
                return Err(ApiError::field(format!("{place}.name"), message));
            }
            if functions.iter().any(|other| other.name == name) {
                return Err(ApiError::field(
                    format!("{place}.name"),
                    "the name comes twice",
                ));
            }
            fields.text("description")?;
            fields.boolean("strict")?;
            let parameters = fields.object("parameters")?.unwrap_or_default();
            fields.finish(false)?;
            check_parameters(&format!("{place}.parameters"), &parameters)?;
            functions.push(Function {
                name,
                parameters: parameters.into(),
            });
        }
        Ok(Self {
            list,
            functions,
            format,
        })
    }

    /// How calls are written.
    pub(crate) fn format(&self) -> ToolFormat {
        self.format
    }

    /// Whether a function was offered.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.functions.iter().any(|function| function.name == name)
    }

    /// A call, from the whole text between the tags.
    pub(crate) fn parse(&self, text: &str) -> Option<Call> {
        let (name, arguments) = match self.format {
            ToolFormat::Json => {
                let call: Value = serde_json::from_str(text.trim()).ok()?;
                let name = call.get("name")?.as_str()?.to_owned();
                let arguments = match call.get("arguments").or(call.get("parameters")) {
                    Some(Value::Object(map)) => map.clone(),
                    Some(Value::String(text)) => serde_json::from_str(text).ok()?,
                    None => Map::new(),
                    Some(_) => return None,
                };
                (name, arguments)
            }
            // its parameters are read one by one
            ToolFormat::Xml => return None,
        };
        self.has(&name).then(|| Call {
            name,
            arguments: Value::Object(arguments).to_string(),
        })
    }

    /// The value of a parameter between tags: JSON, unless the function says that it is a text or it is no JSON.
    pub(crate) fn value(&self, function: &str, parameter: &str, text: &str) -> Value {
        let function = self.functions.iter().find(|f| f.name == function);
        let schema = function.and_then(|f| f.parameters.get("properties")?.get(parameter));
        let kind = schema.and_then(|schema| schema.get("type")?.as_str());
        match kind {
            Some("string") => text.into(),
            _ => serde_json::from_str(text.trim()).unwrap_or_else(|_| text.into()),
        }
    }

    /// A grammar of one call, of any tool or of the named one.
    pub(crate) fn grammar(&self, named: Option<&str>, before: &str) -> Result<String, ApiError> {
        let functions: Vec<&Function> = self
            .functions
            .iter()
            .filter(|function| named.is_none_or(|name| function.name == name))
            .collect();
        if functions.is_empty() {
            return Err(ApiError::field(
                "tool_choice",
                "names no function of `tools`",
            ));
        }
        let mut grammar = format!("start: {before}\"<tool_call>\\n\" call \"\\n</tool_call>\"\n");
        let write = |grammar: &mut String, line: String| {
            // writing to a string does not fail
            let _ = writeln!(grammar, "{line}");
        };
        match self.format {
            ToolFormat::Json => {
                let call = |function: &&Function| {
                    let mut arguments = function.parameters.clone();
                    // whatever else the schema allows, arguments are an object
                    arguments["type"] = "object".into();
                    json!({
                        "type": "object",
                        "properties": {"name": {"const": function.name}, "arguments": arguments},
                        "required": ["name", "arguments"],
                        "additionalProperties": false,
                    })
                };
                // local references are resolved in the schema of their own function
                for (number, function) in functions.iter().enumerate() {
                    let schema = compact(&rooted(call(function), "/properties/arguments"));
                    write(&mut grammar, format!("f{number}: %json {schema}"));
                }
            }
            ToolFormat::Xml => {
                for (number, function) in functions.iter().enumerate() {
                    let parameters = &function.parameters;
                    let properties = parameters.get("properties").and_then(Value::as_object);
                    let required = parameters.get("required").and_then(Value::as_array);
                    let mut line = format!("f{number}: \"<function={}>\\n\" ", function.name);
                    for (name, schema) in properties.into_iter().flatten() {
                        // such a name cannot be written between the tags
                        if name.contains(['"', '\\', '<', '>', '\n']) {
                            continue;
                        }
                        let value = match schema.get("type").and_then(Value::as_str) {
                            Some("string") | None => "VALUE".to_owned(),
                            Some(_) => format!("%json {}", with_definitions(schema, parameters)),
                        };
                        let is_required =
                            required.is_some_and(|list| list.iter().any(|other| other == name));
                        let times = if is_required { "" } else { "?" };
                        line.push_str(&format!(
                            "(\"<parameter={name}>\\n\" {value} \"\\n</parameter>\\n\"){times} "
                        ));
                    }
                    line.push_str("\"</function>\"");
                    write(&mut grammar, line);
                }
                write(&mut grammar, "VALUE: /[^<]+/".to_owned());
            }
        }
        let names: Vec<String> = (0..functions.len()).map(|n| format!("f{n}")).collect();
        write(&mut grammar, format!("call: {}", names.join(" | ")));
        Ok(grammar)
    }
}

/// Refuses a schema that does not describe an object: arguments are one.
fn check_parameters(place: &str, parameters: &Map<String, Value>) -> Result<(), ApiError> {
    let is_object = match parameters.get("type") {
        None | Some(Value::Null) => true,
        Some(Value::Array(kinds)) => kinds.contains(&json!("object")),
        Some(kind) => kind == "object",
    };
    if !is_object {
        let found = parameters.get("type").map(short).unwrap_or_default();
        let message = format!("expected the schema of an object, found the type {found}");
        return Err(ApiError::field(place, message));
    }
    match parameters.get("properties") {
        None | Some(Value::Object(_)) => Ok(()),
        Some(other) => Err(ApiError::field(
            format!("{place}.properties"),
            format!("expected an object, found {}", short(other)),
        )),
    }
}

/// The schema of a parameter, with the definitions of its function.
fn with_definitions(schema: &Value, function: &Value) -> Value {
    let mut schema = compact(schema);
    for name in ["$defs", "definitions"] {
        if let (Some(map), Some(definitions)) = (schema.as_object_mut(), function.get(name)) {
            map.insert(name.to_owned(), definitions.clone());
        }
    }
    schema
}

/// A schema whose local references begin at `root`.
fn rooted(schema: Value, root: &str) -> Value {
    match schema {
        Value::Object(map) => map
            .into_iter()
            .map(|(key, value)| match &value {
                Value::String(text) if key == "$ref" => {
                    let local = text.strip_prefix('#').map(|rest| format!("#{root}{rest}"));
                    (key, local.map_or(value, Value::String))
                }
                _ => (key, rooted(value, root)),
            })
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(list) => list.into_iter().map(|value| rooted(value, root)).collect(),
        value => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(format: ToolFormat) -> Tools {
        let list = json!([
            {"type": "function", "function": {"name": "weather", "description": "d", "parameters": {
                "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}}},
            {"type": "function", "function": {"name": "now"}},
        ]);
        Tools::new(list.as_array().unwrap().clone(), format).unwrap()
    }

    #[test]
    fn whole_calls_and_parameters_are_read() {
        let json = tools(ToolFormat::Json);
        let call = json
            .parse("\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Ulm\", \"days\": 2}}\n")
            .unwrap();
        assert_eq!(call.arguments, r#"{"city":"Ulm","days":2}"#);
        assert_eq!(json.parse(r#"{"name": "now"}"#).unwrap().arguments, "{}");
        for other in [
            r#"{"name": "other", "arguments": {}}"#,
            "[]",
            "",
            r#"{"name": "now", "arguments": 3}"#,
        ] {
            assert_eq!(json.parse(other), None, "{other}");
        }
        let xml = tools(ToolFormat::Xml);
        assert_eq!(xml.value("weather", "city", "12"), json!("12"));
        assert_eq!(xml.value("weather", "days", " 3 "), json!(3));
        assert_eq!(xml.value("weather", "days", "three"), json!("three"));
        assert_eq!(xml.value("now", "other", "[1]"), json!([1]));
    }

    #[test]
    fn tools_are_checked() {
        for (tool, param) in [
            (json!({"type": "x"}), "tools[0].type"),
            (json!({"type": "function"}), "tools[0].function"),
            (
                json!({"type": "function", "function": {"name": "a b"}}),
                "tools[0].function.name",
            ),
            (
                json!({"type": "function", "function": {"name": "a", "x": 1}}),
                "tools[0].function.x",
            ),
            (
                json!({"type": "function", "function": {"name": "a", "parameters": 1}}),
                "tools[0].function.parameters",
            ),
            (
                json!({"type": "function", "function": {"name": "a", "parameters": {"type": "string"}}}),
                "tools[0].function.parameters",
            ),
            (
                json!({"type": "function", "function": {"name": "a", "parameters": {"type": ["string", "null"]}}}),
                "tools[0].function.parameters",
            ),
            (
                json!({"type": "function", "function": {"name": "a", "parameters": {"properties": 3}}}),
                "tools[0].function.parameters.properties",
            ),
            (
                json!({"type": "function", "function": {"name": "a"}, "y": 1}),
                "tools[0].y",
            ),
        ] {
            let error = Tools::new(vec![tool], ToolFormat::Json).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param));
        }
        let choice = |value: Value, has| ToolChoice::read(Some(value), has);
        assert_eq!(choice("auto".into(), false), Ok(ToolChoice::None));
        assert_eq!(ToolChoice::read(None, true), Ok(ToolChoice::Auto));
        assert!(choice("required".into(), false).is_err());
        assert!(choice("any".into(), true).is_err());
        let named = json!({"type": "function", "function": {"name": "now"}});
        assert_eq!(choice(named, true), Ok(ToolChoice::Named("now".to_owned())));
    }
}
