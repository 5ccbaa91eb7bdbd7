//! The chat template: from messages to the text of a prompt.

use std::collections::BTreeMap;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value, context};
use serde_json::Value as Json;

use super::message::Message;
use crate::{Error, Result};

/// Largest template accepted, in bytes. Published ones have some thousand.
const MAX_SOURCE_BYTES: usize = 1 << 20;
/// What a render may cost however little it has to say. One unit is one instruction or 64 bytes.
const BASE_FUEL: u64 = 500_000;
/// What it may cost for each object or string in the messages.
const NODE_FUEL: u64 = 2_000;
/// What it may cost for each byte of them. The published template needs 1/64.
const BYTE_FUEL: u64 = 1;

const NAME: &str = "chat_template";

/// A compiled chat template, set up as transformers 4.57.6 does
/// (`utils/chat_template_utils.py::_compile_jinja_template`).
///
/// Text of messages goes through verbatim: it is data, never template source. The instructions,
/// output and strings of a render are bounded in proportion to the messages. What minijinja 3.1.0
/// does not bound is work inside one instruction on lists that a template has doubled again and
/// again: joining, comparing or printing them. A template comes with the weights and is trusted that
/// far.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// [`Error::Template`] with the line of the syntax error, or if the source is above 1 MiB.
    pub fn new(source: &str) -> Result<Self> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(problem(format!(
                "the source has {} bytes, more than the {MAX_SOURCE_BYTES} accepted",
                source.len()
            )));
        }
        let mut environment = Environment::new();
        let syntax =
            SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failure)?;
        environment.set_syntax(syntax);
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_template_owned(NAME, source.to_string()).map_err(failure)?;
        Ok(ChatTemplate { environment })
    }

    /// The prompt of a conversation.
    ///
    /// `add_generation_prompt` appends the opening of the model's turn; `add_vision_id` puts
    /// `Picture 1: ` or `Video 1: ` before each picture.
    ///
    /// # Errors
    /// As [`ChatTemplate::render_json`].
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        add_vision_id: bool,
    ) -> Result<String> {
        let messages: Json = messages.iter().map(Message::to_template_json).collect();
        self.render_json(&messages, add_generation_prompt, add_vision_id)
    }

    /// The prompt of a conversation given as the JSON value that the template shall see.
    ///
    /// # Errors
    /// [`Error::Template`] if the template raises an exception, fails, or costs too much.
    pub fn render_json(
        &self,
        messages: &Json,
        add_generation_prompt: bool,
        add_vision_id: bool,
    ) -> Result<String> {
        let mut fuel = BASE_FUEL;
        let messages = template_value(messages, &mut fuel);
        // A clone shares the compiled template; the fuel is set per environment.
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        let template = environment.get_template(NAME).map_err(failure)?;
        template.render(context! { messages, add_generation_prompt, add_vision_id }).map_err(failure)
    }
}

/// The template of a checkpoint, given the text of the files that may hold one. The first that does
/// wins: `chat_template.jinja`, `chat_template.json`, `tokenizer_config.json`. In the latter two,
/// the key `chat_template` is a template or an array of `{name, template}` with one named `default`.
///
/// # Errors
/// [`Error::Template`] if a file that is looked at is malformed, or none has a template.
pub fn find_template(
    chat_template_jinja: Option<&str>,
    chat_template_json: Option<&str>,
    tokenizer_config_json: Option<&str>,
) -> Result<ChatTemplate> {
    if let Some(source) = chat_template_jinja {
        return ChatTemplate::new(source);
    }
    let files =
        [("chat_template.json", chat_template_json), ("tokenizer_config.json", tokenizer_config_json)];
    for (file, text) in files {
        let Some(text) = text else { continue };
        let json: Json =
            serde_json::from_str(text).map_err(|e| problem(format!("{file} is not valid JSON: {e}")))?;
        match json.get("chat_template") {
            None | Some(Json::Null) => {}
            Some(Json::String(source)) => return ChatTemplate::new(source),
            Some(Json::Array(named)) => {
                let default = named.iter().find(|entry| entry["name"] == "default");
                return match default.and_then(|entry| entry["template"].as_str()) {
                    Some(source) => ChatTemplate::new(source),
                    None => {
                        Err(problem(format!("{file}: the array chat_template has no entry named default")))
                    }
                };
            }
            Some(_) => {
                return Err(problem(format!(
                    "{file}: chat_template must be a string or an array of {{name, template}}"
                )));
            }
        }
    }
    Err(problem(
        "the checkpoint has none: expected chat_template.jinja, or a key chat_template in chat_template.json or \
         tokenizer_config.json; copy one of these from the published model",
    ))
}

/// The value as the template engine holds it. Adds what it allows a render to cost to `fuel`.
fn template_value(json: &Json, fuel: &mut u64) -> Value {
    *fuel += NODE_FUEL;
    match json {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(value), _) => Value::from(value),
            (_, Some(value)) => Value::from(value),
            _ => Value::from(number.as_f64()),
        },
        Json::String(text) => {
            *fuel += BYTE_FUEL * text.len() as u64;
            Value::from(text.as_str())
        }
        Json::Array(items) => items.iter().map(|item| template_value(item, fuel)).collect(),
        Json::Object(map) => {
            let map: BTreeMap<String, Value> =
                map.iter().map(|(key, item)| (key.clone(), template_value(item, fuel))).collect();
            Value::from(map)
        }
    }
}

fn failure(error: minijinja::Error) -> Error {
    if error.kind() == ErrorKind::OutOfFuel {
        return problem("rendering was stopped because it costs far more than the messages warrant");
    }
    problem(error.to_string())
}

fn problem(text: impl Into<String>) -> Error {
    Error::Template { problem: text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, text: &str) -> Result<String> {
        ChatTemplate::new(source)?.render(&[Message::user(text)], true, false)
    }

    #[test]
    fn template_syntax_in_messages_comes_through_verbatim() {
        let text = "{{ 7 * 6 }} {% raw %} {# c #} <b>&amp;</b>";
        assert_eq!(render("{{ messages[0]['content'] }}", text).unwrap(), text);
    }

    #[test]
    fn an_exception_raised_by_the_template_is_an_error_with_its_message() {
        let error = render("{{ raise_exception('roles must alternate') }}", "").unwrap_err();
        assert!(error.to_string().contains("roles must alternate"), "{error}");
    }

    #[test]
    fn a_syntax_error_names_its_line() {
        let error = ChatTemplate::new("a\n{% if %}").unwrap_err();
        assert!(error.to_string().contains(":2"), "{error}");
    }

    #[test]
    fn hostile_templates_stop_early() {
        let sources = [
            "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}x{% endfor %}{% endfor %}{% endfor %}",
            "{% set ns = namespace(x='aaaaaaaa') %}{% for a in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "{% for a in range(99999) %}{% set x = range(99999)|list|sort %}{% endfor %}",
            "{{ 'a' * 99999999 * 999 }}",
            "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        ];
        for source in sources {
            let error = render(source, "").unwrap_err();
            assert!(matches!(error, Error::Template { .. }), "{source}: {error}");
        }
    }

    #[test]
    fn a_deeply_nested_template_is_an_error() {
        for (open, close) in [("(", ")"), ("[", "]"), ("{% if a %}", "{% endif %}")] {
            let (inside, end) = if open.starts_with('{') { ("", "") } else { ("{{ ", " }}") };
            let source = format!("{inside}{}1{}{end}", open.repeat(50_000), close.repeat(50_000));
            assert!(ChatTemplate::new(&source).is_err(), "{open}");
        }
    }

    #[test]
    fn long_conversations_are_not_stopped() {
        let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
        let messages = vec![Message::user("x".repeat(10_000)); 2_000];
        let prompt = ChatTemplate::new(template).unwrap().render(&messages, true, false).unwrap();
        assert_eq!(prompt.len(), 2_000 * 10_006);
    }

    #[test]
    fn blocks_are_trimmed_as_transformers_does() {
        let source = "{% if true %}\n  {% set x = 1 %}\na\n{% endif %}\nb\n";
        assert_eq!(render(source, "").unwrap(), "a\nb");
    }

    #[test]
    fn the_first_file_with_a_template_wins() {
        let (json, list) = (
            r#"{"chat_template": "B"}"#,
            r#"{"chat_template": [{"name": "tool", "template": "D"}, {"name": "default", "template": "C"}]}"#,
        );
        let text = |template: Result<ChatTemplate>| template.unwrap().render(&[], true, false).unwrap();
        assert_eq!(text(find_template(Some("A"), Some(json), Some(list))), "A");
        assert_eq!(text(find_template(None, Some(json), Some(list))), "B");
        assert_eq!(text(find_template(None, Some("{}"), Some(list))), "C");
        for bad in [
            "",
            "[]",
            "{}",
            r#"{"chat_template": 1}"#,
            r#"{"chat_template": []}"#,
            r#"{"chat_template": ["a"]}"#,
        ] {
            let error = find_template(None, None, Some(bad)).unwrap_err();
            assert!(matches!(error, Error::Template { .. }), "{bad}: {error}");
        }
        assert!(find_template(None, None, None).unwrap_err().to_string().contains("tokenizer_config.json"));
    }
}
