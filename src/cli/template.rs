//! `--format`: the part of Go's templates that people use.
//!
//! ```text
//! {{.Name}} {{.Config.Env}} {{index .List 0}} {{json .}} {{upper .X}} {{join .List ", "}} {{len .List}}
//! {{if .X}}…{{else}}…{{end}}   {{range .List}}{{.}}{{end}}   {{range $k, $v := .Map}}{{$k}}={{$v}}{{end}}   {{println .X}}
//! {{- and -}} trim; a pipe feeds the value on its left to the function on its right
//! ```
//! `json` alone is `{{json .}}`, and `table TEMPLATE` begins with a line of the fields' names.

use anyhow::{Context as _, bail};
use serde_json::Value;

/// A parsed template.
#[derive(Debug)]
pub struct Template {
    nodes: Vec<Node>,
    /// It began with `table`: a head with these names is wanted.
    pub table: bool,
}

#[derive(Debug)]
enum Node {
    Text(String),
    Print(Pipeline),
    If(Pipeline, Vec<Node>, Vec<Node>),
    Range { names: Vec<String>, over: Pipeline, body: Vec<Node>, otherwise: Vec<Node> },
}

type Pipeline = Vec<Vec<Word>>;

#[derive(Clone, Debug, PartialEq)]
enum Word {
    /// A path from the value at hand, or from a variable.
    Path {
        variable: Option<String>,
        fields: Vec<String>,
    },
    Literal(Value),
    Function(String),
    Group(Vec<Vec<Word>>),
}

type Variables = Vec<(String, Value)>;

impl Template {
    /// Parses what was given to `--format`.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let (table, text) = match text.trim_start().strip_prefix("table ") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let text = if text.trim() == "json" { "{{json .}}" } else { text };
        let text = text.replace("\\t", "\t").replace("\\n", "\n");
        let mut tokens = tokens(&text)?.into_iter().peekable();
        let (nodes, end) = nodes(&mut tokens)?;
        if let Some(end) = end {
            bail!("template: unexpected {{{{{end}}}}}");
        }
        Ok(Self { nodes, table })
    }

    /// The text for one value.
    pub fn text(&self, value: &Value) -> anyhow::Result<String> {
        let mut out = String::new();
        print(&self.nodes, value, value, &mut Vec::new(), &mut out)?;
        Ok(out)
    }

    /// The head of a table: every field by its name.
    pub fn head(&self, name: impl Fn(&str) -> String) -> String {
        let mut out = String::new();
        for node in &self.nodes {
            match node {
                Node::Text(text) => out.push_str(text),
                Node::Print(pipeline) => {
                    let field = pipeline.iter().flatten().find_map(|word| match word {
                        Word::Path { fields, .. } => fields.last(),
                        _ => None,
                    });
                    out.push_str(&field.map(|field| name(field)).unwrap_or_default());
                }
                Node::If(..) | Node::Range { .. } => {}
            }
        }
        out
    }
}

enum Token {
    Text(String),
    Action(String),
}

fn tokens(mut text: &str) -> anyhow::Result<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut trim = false;
    while let Some(start) = text.find("{{") {
        let (before, rest) = text.split_at(start);
        let end = rest.find("}}").context("template: {{ without }}")?;
        let mut action = rest.get(2..end).unwrap_or_default();
        let mut before = if trim { before.trim_start() } else { before };
        if let Some(inner) = action.strip_prefix("- ") {
            (before, action) = (before.trim_end(), inner);
        }
        trim = false;
        if let Some(inner) = action.strip_suffix(" -") {
            (trim, action) = (true, inner);
        }
        tokens.push(Token::Text(before.to_owned()));
        if !action.trim_start().starts_with("/*") {
            tokens.push(Token::Action(action.trim().to_owned()));
        }
        text = rest.get(end + 2..).unwrap_or_default();
    }
    tokens.push(Token::Text(if trim { text.trim_start() } else { text }.to_owned()));
    Ok(tokens)
}

type Tokens = std::iter::Peekable<std::vec::IntoIter<Token>>;

/// Nodes up to an `else` or `end`, which is answered too.
fn nodes(tokens: &mut Tokens) -> anyhow::Result<(Vec<Node>, Option<String>)> {
    let mut found = Vec::new();
    while let Some(token) = tokens.next() {
        let action = match token {
            Token::Text(text) => {
                found.push(Node::Text(text));
                continue;
            }
            Token::Action(action) => action,
        };
        let (word, rest) = action.split_once(char::is_whitespace).unwrap_or((&action, ""));
        match word {
            "end" | "else" => return Ok((found, Some(action.clone()))),
            "if" => {
                let (body, otherwise) = branches(tokens)?;
                found.push(Node::If(pipeline(rest)?, body, otherwise));
            }
            "range" => {
                let (names, over) = match rest.split_once(":=") {
                    Some((names, over)) => (
                        names.split(',').map(|name| name.trim().trim_start_matches('$').to_owned()).collect(),
                        over,
                    ),
                    None => (Vec::new(), rest),
                };
                let (body, otherwise) = branches(tokens)?;
                found.push(Node::Range { names, over: pipeline(over)?, body, otherwise });
            }
            _ => found.push(Node::Print(pipeline(&action)?)),
        }
    }
    Ok((found, None))
}

fn branches(tokens: &mut Tokens) -> anyhow::Result<(Vec<Node>, Vec<Node>)> {
    let (body, end) = nodes(tokens)?;
    match end.as_deref() {
        Some("end") => Ok((body, Vec::new())),
        Some("else") => match nodes(tokens)? {
            (otherwise, Some(end)) if end == "end" => Ok((body, otherwise)),
            _ => bail!("template: else without end"),
        },
        Some(chain) => {
            // `else if`: the rest is an if of its own, which shares the end.
            let condition =
                chain.trim_start_matches("else").trim().trim_start_matches("if").trim().to_owned();
            let (inner, otherwise) = branches(tokens)?;
            Ok((body, vec![Node::If(pipeline(&condition)?, inner, otherwise)]))
        }
        None => bail!("template: if or range without end"),
    }
}

fn pipeline(text: &str) -> anyhow::Result<Pipeline> {
    let words = words(text)?;
    if words.iter().all(Vec::is_empty) {
        bail!("template: empty action");
    }
    Ok(words)
}

/// Commands between pipes, each as words.
fn words(text: &str) -> anyhow::Result<Vec<Vec<Word>>> {
    let mut commands = vec![Vec::new()];
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let word = match c {
            c if c.is_whitespace() => continue,
            '|' => {
                commands.push(Vec::new());
                continue;
            }
            '(' => {
                let mut depth = 1;
                let mut end = text.len();
                for (at, c) in chars.by_ref() {
                    depth += match c {
                        '(' => 1,
                        ')' => -1,
                        _ => 0,
                    };
                    if depth == 0 {
                        end = at;
                        break;
                    }
                }
                if depth != 0 {
                    bail!("template: ( without )");
                }
                Word::Group(words(text.get(at + 1..end).unwrap_or_default())?)
            }
            '"' | '`' => {
                let mut value = String::new();
                let mut closed = false;
                while let Some((_, next)) = chars.next() {
                    match next {
                        next if next == c => {
                            closed = true;
                            break;
                        }
                        '\\' if c == '"' => value.extend(chars.next().map(|(_, escaped)| escaped)),
                        next => value.push(next),
                    }
                }
                if !closed {
                    bail!("template: unterminated quoted string");
                }
                Word::Literal(value.into())
            }
            _ => {
                let mut end = at + c.len_utf8();
                while let Some((next_at, next)) = chars.peek().copied() {
                    if next.is_whitespace() || matches!(next, '|' | '(' | ')') {
                        break;
                    }
                    end = next_at + next.len_utf8();
                    chars.next();
                }
                word(text.get(at..end).unwrap_or_default())?
            }
        };
        if let Some(command) = commands.last_mut() {
            command.push(word);
        }
    }
    Ok(commands)
}

fn word(text: &str) -> anyhow::Result<Word> {
    let fields = |path: &str| path.split('.').filter(|part| !part.is_empty()).map(str::to_owned).collect();
    if let Some(rest) = text.strip_prefix('$') {
        let (name, path) = rest.split_once('.').unwrap_or((rest, ""));
        return Ok(Word::Path { variable: Some(name.to_owned()), fields: fields(path) });
    }
    if text.starts_with('.') {
        return Ok(Word::Path { variable: None, fields: fields(text) });
    }
    if let Ok(number) = text.parse::<i64>() {
        return Ok(Word::Literal(number.into()));
    }
    Ok(match text {
        "true" => Word::Literal(true.into()),
        "false" => Word::Literal(false.into()),
        "nil" => Word::Literal(Value::Null),
        name if name.bytes().all(|byte| byte.is_ascii_alphanumeric()) => Word::Function(name.to_owned()),
        other => bail!("template: {other:?} is neither a field nor a function"),
    })
}

fn print(
    nodes: &[Node],
    dot: &Value,
    root: &Value,
    variables: &mut Variables,
    out: &mut String,
) -> anyhow::Result<()> {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Print(pipeline) => out.push_str(&shown(&run(pipeline, dot, root, variables)?)),
            Node::If(condition, body, otherwise) => {
                let branch = if is_true(&run(condition, dot, root, variables)?) { body } else { otherwise };
                print(branch, dot, root, variables, out)?;
            }
            Node::Range { names, over, body, otherwise } => {
                let items: Vec<(Value, Value)> = match run(over, dot, root, variables)? {
                    Value::Array(list) => {
                        list.into_iter().enumerate().map(|(at, item)| (Value::from(at), item)).collect()
                    }
                    Value::Object(map) => map.into_iter().map(|(key, item)| (key.into(), item)).collect(),
                    Value::Null => Vec::new(),
                    other => bail!("template: range over {}", shown(&other)),
                };
                if items.is_empty() {
                    print(otherwise, dot, root, variables, out)?;
                }
                for (key, item) in items {
                    let before = variables.len();
                    match names.as_slice() {
                        [value] => variables.push((value.clone(), item.clone())),
                        [name, value] => {
                            variables.extend([(name.clone(), key), (value.clone(), item.clone())]);
                        }
                        _ => {}
                    }
                    print(body, &item, root, variables, out)?;
                    variables.truncate(before);
                }
            }
        }
    }
    Ok(())
}

fn run(pipeline: &Pipeline, dot: &Value, root: &Value, variables: &Variables) -> anyhow::Result<Value> {
    let mut piped: Option<Value> = None;
    for command in pipeline {
        let Some((first, rest)) = command.split_first() else { bail!("template: nothing before or after |") };
        let mut arguments =
            rest.iter().map(|word| value(word, dot, root, variables)).collect::<anyhow::Result<Vec<_>>>()?;
        arguments.extend(piped.take());
        piped = Some(match first {
            Word::Function(name) => call(name, arguments)?,
            word if arguments.is_empty() => value(word, dot, root, variables)?,
            _ => bail!("template: a value takes no arguments"),
        });
    }
    Ok(piped.unwrap_or(Value::Null))
}

fn value(word: &Word, dot: &Value, root: &Value, variables: &Variables) -> anyhow::Result<Value> {
    match word {
        Word::Literal(value) => Ok(value.clone()),
        Word::Function(name) => call(name, Vec::new()),
        Word::Group(pipeline) => run(pipeline, dot, root, variables),
        Word::Path { variable, fields } => {
            let mut current = match variable.as_deref() {
                None => dot,
                Some("") => root,
                Some(name) => match variables.iter().rev().find(|(known, _)| known == name) {
                    Some((_, value)) => value,
                    None => bail!("template: undefined variable \"${name}\""),
                },
            };
            for field in fields {
                current = match current {
                    Value::Object(map) => match map.get(field) {
                        Some(value) => value,
                        None => bail!("template: there is no field {field:?}{}", hint(field, map)),
                    },
                    Value::Null => return Ok(Value::Null),
                    _ => bail!("template: there is no field {field:?} in a plain value"),
                };
            }
            Ok(current.clone())
        }
    }
}

/// The field that may have been meant.
fn hint(field: &str, map: &serde_json::Map<String, Value>) -> String {
    let near = map.keys().find(|key| key.eq_ignore_ascii_case(field));
    near.map_or_else(String::new, |key| format!("; did you mean .{key}?"))
}

fn call(name: &str, arguments: Vec<Value>) -> anyhow::Result<Value> {
    let text = |at: usize| arguments.get(at).map(shown).unwrap_or_default();
    Ok(match name {
        "json" => serde_json::to_string(arguments.first().unwrap_or(&Value::Null))?.into(),
        "upper" => text(0).to_uppercase().into(),
        "lower" => text(0).to_lowercase().into(),
        "title" => {
            let text = text(0);
            let mut chars = text.chars();
            chars
                .next()
                .map(|first| first.to_uppercase().chain(chars).collect::<String>())
                .unwrap_or_default()
                .into()
        }
        "print" => arguments.iter().map(shown).collect::<String>().into(),
        "println" => (arguments.iter().map(shown).collect::<Vec<_>>().join(" ") + "\n").into(),
        "join" => {
            let list = arguments.first().and_then(Value::as_array).cloned().unwrap_or_default();
            list.iter().map(shown).collect::<Vec<_>>().join(&text(1)).into()
        }
        "split" => {
            let separator = text(1);
            text(0).split(separator.as_str()).map(Value::from).collect()
        }
        "len" => match arguments.first() {
            Some(Value::Array(list)) => list.len(),
            Some(Value::Object(map)) => map.len(),
            Some(Value::String(text)) => text.len(),
            _ => 0,
        }
        .into(),
        "index" => {
            let mut current = arguments.first().cloned().unwrap_or(Value::Null);
            for key in arguments.iter().skip(1) {
                current = match (&current, key) {
                    (Value::Array(list), key) => {
                        let at = key.as_u64().and_then(|at| usize::try_from(at).ok());
                        at.and_then(|at| list.get(at)).cloned().context("template: index out of range")?
                    }
                    (Value::Object(map), key) => map.get(&shown(key)).cloned().unwrap_or(Value::Null),
                    _ => Value::Null,
                };
            }
            current
        }
        "not" => (!arguments.first().is_some_and(is_true)).into(),
        "and" => arguments
            .iter()
            .find(|value| !is_true(value))
            .or(arguments.last())
            .cloned()
            .unwrap_or(Value::Null),
        "or" => {
            arguments.iter().find(|value| is_true(value)).or(arguments.last()).cloned().unwrap_or(Value::Null)
        }
        "eq" => arguments.iter().skip(1).any(|other| Some(other) == arguments.first()).into(),
        "ne" => (arguments.first() != arguments.get(1)).into(),
        other => bail!("template: function {other:?} not defined"),
    })
}

fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// As Go prints it.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(shown).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let pairs: Vec<_> = map.iter().map(|(key, value)| format!("{key}:{}", shown(value))).collect();
            format!("map[{}]", pairs.join(" "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(template: &str) -> String {
        let value = json!({"Name": "web", "List": ["a", "b"], "Map": {"k": 1, "l": null}, "Empty": [], "Deep": {"X": true}});
        Template::parse(template)
            .and_then(|template| template.text(&value))
            .unwrap_or_else(|error| error.to_string())
    }

    #[test]
    fn what_people_write() {
        for (template, expected) in [
            ("{{.Name}}:{{.Deep.X}}", "web:true"),
            ("{{json .List}}", "[\"a\",\"b\"]"),
            ("{{.List}} {{.Map}}", "[a b] map[k:1 l:<no value>]"),
            ("{{range .List}}<{{.}}>{{end}}", "<a><b>"),
            ("{{range $k, $v := .Map}}{{$k}}={{$v}};{{end}}", "k=1;l=<no value>;"),
            ("{{range .Empty}}x{{else}}none{{end}}", "none"),
            ("{{if .Empty}}x{{else if .Name}}named{{else}}y{{end}}", "named"),
            ("{{index .List 1}} {{index .Map \"k\"}}", "b 1"),
            ("{{.Name | upper}} {{join .List \", \"}}", "WEB a, b"),
            ("{{range .List}}{{$.Name}}{{end}}", "webweb"),
            ("a {{- .Name -}} b", "awebb"),
            ("{{len .List}}{{if eq .Name \"web\"}}!{{end}}", "2!"),
            ("{{(index .List 0) | upper}}", "A"),
            ("{{.name}}", "template: there is no field \"name\"; did you mean .Name?"),
            ("{{.Name", "template: {{ without }}"),
            ("{{if .Name}}", "template: if or range without end"),
            ("{{nonsense .}}", "template: function \"nonsense\" not defined"),
        ] {
            assert_eq!(text(template), expected, "{template}");
        }
    }

    #[test]
    fn tables_have_a_head() {
        let template = Template::parse("table {{.Name}}\\t{{.List}}").unwrap();
        assert!(template.table);
        assert_eq!(template.head(str::to_uppercase), "NAME\tLIST");
    }
}
