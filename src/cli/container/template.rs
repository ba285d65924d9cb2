//! `--format`: the part of Go's text/template that people use with docker.
//!
//! `{{.Name}}`, `{{.State.Status}}`, `{{json .}}`, `{{index .Labels "key"}}`, `{{join .Args " "}}`, `{{len .Mounts}}`,
//! `{{upper .Name}}`, `{{lower .Name}}`, `{{println .}}`, `{{range .Mounts}}…{{end}}`, `{{range $k, $v := .Labels}}…{{end}}`,
//! `{{if .X}}…{{else}}…{{end}}`, `{{with .X}}…{{end}}`, pipes, `eq`, `ne`, `and`, `or`, `not`, and `{{-`, `-}}`.

use std::collections::HashMap;

use anyhow::{Context as _, bail};
use serde_json::Value;

/// A template that was read.
#[derive(Debug)]
pub struct Template {
    nodes: Vec<Node>,
}

#[derive(Debug)]
enum Node {
    Text(String),
    Print(String),
    Range { key: Option<String>, value: Option<String>, over: String, body: Vec<Node>, none: Vec<Node> },
    If { condition: String, then: Vec<Node>, otherwise: Vec<Node>, with: bool },
}

#[derive(Debug)]
enum Token {
    Text(String),
    Action(String),
}

impl Template {
    /// Reads one. `\t` and `\n` are what they are in Go's strings.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let text = text.replace("\\t", "\t").replace("\\n", "\n");
        let mut tokens = tokens(&text)?.into_iter();
        let (nodes, end) = nodes(&mut tokens)?;
        match end {
            None => Ok(Self { nodes }),
            Some(end) => bail!("template: {{{{{end}}}}} without a beginning"),
        }
    }

    /// Fills it in.
    pub fn render(&self, value: &Value) -> anyhow::Result<String> {
        let mut text = String::new();
        let mut variables = HashMap::from([("$".to_owned(), value.clone())]);
        render(&self.nodes, value, &mut variables, &mut text)?;
        Ok(text)
    }

    /// The fields that it prints, for the titles of a table.
    pub fn titles(&self) -> Self {
        let titled = |node: &Node| match node {
            Node::Text(text) => Node::Text(text.clone()),
            Node::Print(action) => {
                let field = action.split_whitespace().find(|word| word.starts_with('.') && word.len() > 1);
                let name = field.unwrap_or(action).rsplit('.').next().unwrap_or_default();
                Node::Text(title(name))
            }
            Node::Range { .. } | Node::If { .. } => Node::Text(String::new()),
        };
        Self { nodes: self.nodes.iter().map(titled).collect() }
    }
}

/// Docker's title for a field.
fn title(field: &str) -> String {
    match field {
        "ID" => "CONTAINER ID".to_owned(),
        "RunningFor" | "CreatedSince" => "CREATED".to_owned(),
        "CreatedAt" => "CREATED AT".to_owned(),
        "CPUPerc" => "CPU %".to_owned(),
        "MemUsage" => "MEM USAGE / LIMIT".to_owned(),
        "MemPerc" => "MEM %".to_owned(),
        "NetIO" => "NET I/O".to_owned(),
        "BlockIO" => "BLOCK I/O".to_owned(),
        "VolumeName" | "Name" => field.to_uppercase(),
        field => field.to_uppercase(),
    }
}

fn tokens(text: &str) -> anyhow::Result<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = text;
    let mut trim = false;
    loop {
        let (before, after) = match rest.split_once("{{") {
            Some((before, after)) => (before, Some(after)),
            None => (rest, None),
        };
        let mut before = if trim { before.trim_start().to_owned() } else { before.to_owned() };
        let Some(after) = after else {
            tokens.push(Token::Text(before));
            return Ok(tokens);
        };
        let (action, next) = after.split_once("}}").context("template: {{ without }}")?;
        let action = match action.strip_prefix("- ") {
            Some(action) => {
                before.truncate(before.trim_end().len());
                action
            }
            None => action,
        };
        let (action, trims) = match action.strip_suffix(" -") {
            Some(action) => (action, true),
            None => (action, false),
        };
        trim = trims;
        tokens.push(Token::Text(before));
        if !action.trim().starts_with("/*") {
            tokens.push(Token::Action(action.trim().to_owned()));
        }
        rest = next;
    }
}

type Tokens = std::vec::IntoIter<Token>;

/// Until an `end` or `else`, which is answered.
fn nodes(tokens: &mut Tokens) -> anyhow::Result<(Vec<Node>, Option<String>)> {
    let mut nodes = Vec::new();
    while let Some(token) = tokens.next() {
        let action = match token {
            Token::Text(text) => {
                nodes.push(Node::Text(text));
                continue;
            }
            Token::Action(action) => action,
        };
        let (word, rest) = action.split_once(char::is_whitespace).unwrap_or((&action, ""));
        let rest = rest.trim();
        match word {
            "end" | "else" => return Ok((nodes, Some(action))),
            "if" | "with" => {
                let (then, otherwise) = branches(tokens)?;
                nodes.push(Node::If { condition: rest.to_owned(), then, otherwise, with: word == "with" });
            }
            "range" => {
                let (variables, over) = rest.split_once(":=").unwrap_or(("", rest));
                let mut names = variables
                    .split(',')
                    .map(str::trim)
                    .filter(|name| !name.is_empty())
                    .map(ToOwned::to_owned);
                let (first, second) = (names.next(), names.next());
                let (key, value) = if second.is_some() { (first, second) } else { (None, first) };
                let (body, none) = branches(tokens)?;
                nodes.push(Node::Range { key, value, over: over.trim().to_owned(), body, none });
            }
            _ => nodes.push(Node::Print(action)),
        }
    }
    Ok((nodes, None))
}

fn branches(tokens: &mut Tokens) -> anyhow::Result<(Vec<Node>, Vec<Node>)> {
    let (then, end) = nodes(tokens)?;
    match end.as_deref() {
        Some("end") => Ok((then, Vec::new())),
        Some("else") => {
            let (otherwise, end) = nodes(tokens)?;
            if end.as_deref() != Some("end") {
                bail!("template: {{{{else}}}} without {{{{end}}}}");
            }
            Ok((then, otherwise))
        }
        Some(end) => match end.strip_prefix("else if ") {
            Some(condition) => {
                let (inner, otherwise) = branches(tokens)?;
                let condition = condition.trim().to_owned();
                Ok((then, vec![Node::If { condition, then: inner, otherwise, with: false }]))
            }
            None => bail!("template: {end:?} is not known"),
        },
        None => bail!("template: {{{{end}}}} is missing"),
    }
}

type Variables = HashMap<String, Value>;

fn render(nodes: &[Node], dot: &Value, variables: &mut Variables, text: &mut String) -> anyhow::Result<()> {
    for node in nodes {
        match node {
            Node::Text(part) => text.push_str(part),
            Node::Print(action) => text.push_str(&shown(&pipeline(action, dot, variables)?)),
            Node::If { condition, then, otherwise, with } => {
                let value = pipeline(condition, dot, variables)?;
                let branch = if is_true(&value) { then } else { otherwise };
                let inside = if *with && is_true(&value) { &value } else { dot };
                render(branch, inside, variables, text)?;
            }
            Node::Range { key, value, over, body, none } => {
                let entries: Vec<(Value, Value)> = match pipeline(over, dot, variables)? {
                    Value::Array(list) => {
                        list.into_iter().enumerate().map(|(at, entry)| (at.into(), entry)).collect()
                    }
                    Value::Object(map) => map.into_iter().map(|(key, entry)| (key.into(), entry)).collect(),
                    Value::Null => Vec::new(),
                    other => bail!("template: cannot range over {other}"),
                };
                if entries.is_empty() {
                    render(none, dot, variables, text)?;
                }
                for (at, entry) in entries {
                    if let Some(name) = key {
                        variables.insert(name.clone(), at);
                    }
                    if let Some(name) = value {
                        variables.insert(name.clone(), entry.clone());
                    }
                    render(body, &entry, variables, text)?;
                }
            }
        }
    }
    Ok(())
}

/// Commands whose value is the last argument of the next.
fn pipeline(text: &str, dot: &Value, variables: &Variables) -> anyhow::Result<Value> {
    let words = words(text)?;
    let mut piped = None;
    for command in words.split(|word| word == "|") {
        piped = Some(call(command, piped, dot, variables)?);
    }
    piped.context("template: an action is empty")
}

/// Words, strings in quotes and parentheses as one.
fn words(text: &str) -> anyhow::Result<Vec<String>> {
    let mut words = Vec::new();
    let mut word = String::new();
    let (mut quote, mut depth) = (None, 0_u32);
    for letter in text.chars() {
        match (quote, letter) {
            (Some(open), close) if open == close => {
                word.push(close);
                quote = None;
            }
            (Some(_), letter) => word.push(letter),
            (None, '"' | '`' | '\'') => {
                word.push(letter);
                quote = Some(letter);
            }
            (None, '(') => {
                word.push(letter);
                depth += 1;
            }
            (None, ')') => {
                word.push(letter);
                depth = depth.checked_sub(1).context("template: ) without (")?;
            }
            (None, '|') if depth == 0 => {
                words.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
                words.push("|".to_owned());
            }
            (None, blank) if depth == 0 && blank.is_whitespace() => {
                words.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
            }
            (None, letter) => word.push(letter),
        }
    }
    if quote.is_some() || depth > 0 {
        bail!("template: {text:?} does not end");
    }
    words.extend((!word.is_empty()).then_some(word));
    Ok(words)
}

fn call(words: &[String], piped: Option<Value>, dot: &Value, variables: &Variables) -> anyhow::Result<Value> {
    let (first, rest) = words.split_first().context("template: an action is empty")?;
    let is_function = first.starts_with(|letter: char| letter.is_alphabetic());
    if !is_function {
        if !rest.is_empty() {
            bail!("template: {first:?} is no function");
        }
        return operand(first, dot, variables);
    }
    let mut values =
        rest.iter().map(|word| operand(word, dot, variables)).collect::<anyhow::Result<Vec<_>>>()?;
    values.extend(piped);
    if matches!(first.as_str(), "true" | "false" | "nil") {
        return operand(first, dot, variables);
    }
    let one = || values.first().with_context(|| format!("template: {first} wants a value"));
    Ok(match first.as_str() {
        "json" => one()?.to_string().into(),
        "len" => match one()? {
            Value::Array(list) => list.len().into(),
            Value::Object(map) => map.len().into(),
            Value::String(text) => text.len().into(),
            _ => 0.into(),
        },
        "index" => {
            let (value, keys) = values.split_first().context("template: index wants a value")?;
            keys.iter().fold(value.clone(), |value, key| match (&value, key) {
                (Value::Array(list), key) => {
                    let at = key.as_u64().and_then(|at| usize::try_from(at).ok());
                    at.and_then(|at| list.get(at)).cloned().unwrap_or_default()
                }
                (value, key) => value.get(shown(key)).cloned().unwrap_or_default(),
            })
        }
        "join" => {
            let separator = values.get(1).map(shown).unwrap_or_default();
            let list = one()?.as_array().cloned().unwrap_or_default();
            list.iter().map(shown).collect::<Vec<_>>().join(&separator).into()
        }
        "split" => {
            let separator = values.get(1).map(shown).unwrap_or_default();
            shown(one()?).split(&separator).map(ToOwned::to_owned).collect::<Vec<_>>().into()
        }
        "upper" => shown(one()?).to_uppercase().into(),
        "lower" => shown(one()?).to_lowercase().into(),
        "title" => {
            let text = shown(one()?);
            let mut letters = text.chars();
            let head: String =
                letters.next().map(|letter| letter.to_uppercase().collect()).unwrap_or_default();
            (head + letters.as_str()).into()
        }
        "print" => values.iter().map(shown).collect::<String>().into(),
        "println" => format!("{}\n", values.iter().map(shown).collect::<Vec<_>>().join(" ")).into(),
        "printf" => {
            let mut values = values.iter().map(shown);
            let format = values.next().unwrap_or_default();
            let mut text = String::new();
            let mut letters = format.chars();
            while let Some(letter) = letters.next() {
                match (letter, if letter == '%' { letters.next() } else { None }) {
                    ('%', Some('%')) => text.push('%'),
                    ('%', Some('q')) => text.push_str(&format!("{:?}", values.next().unwrap_or_default())),
                    ('%', Some(_)) => text.push_str(&values.next().unwrap_or_default()),
                    (letter, _) => text.push(letter),
                }
            }
            text.into()
        }
        "eq" => values
            .get(1..)
            .is_some_and(|others| {
                others.iter().any(|it| shown(it) == values.first().map(shown).unwrap_or_default())
            })
            .into(),
        "ne" => (values.first().map(shown) != values.get(1).map(shown)).into(),
        "not" => (!is_true(one()?)).into(),
        "and" => values.iter().find(|value| !is_true(value)).or(values.last()).cloned().unwrap_or_default(),
        "or" => values.iter().find(|value| is_true(value)).or(values.last()).cloned().unwrap_or_default(),
        other => bail!("template: function {other:?} is not known"),
    })
}

fn operand(word: &str, dot: &Value, variables: &Variables) -> anyhow::Result<Value> {
    if let Some(text) = word.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
        return Ok(text.replace("\\\"", "\"").into());
    }
    for quote in ['`', '\''] {
        if let Some(text) = word.strip_prefix(quote).and_then(|text| text.strip_suffix(quote)) {
            return Ok(text.into());
        }
    }
    if let Some(inner) = word.strip_prefix('(') {
        let (inner, path) = inner.rsplit_once(')').context("template: ( without )")?;
        return field(&pipeline(inner, dot, variables)?, path, word);
    }
    if let Some(path) = word.strip_prefix('.') {
        return field(dot, path, word);
    }
    if word.starts_with('$') {
        let (name, path) = word.split_once('.').unwrap_or((word, ""));
        let value = variables.get(name).with_context(|| format!("template: variable {name} is not set"))?;
        return field(value, path, word);
    }
    match word {
        "true" => Ok(true.into()),
        "false" => Ok(false.into()),
        "nil" => Ok(Value::Null),
        number => {
            number.parse::<i64>().map(Into::into).with_context(|| format!("template: {word:?} is not known"))
        }
    }
}

fn field(value: &Value, path: &str, whole: &str) -> anyhow::Result<Value> {
    let mut value = value;
    for name in path.split('.').filter(|name| !name.is_empty()) {
        value = match value {
            Value::Object(map) => map.get(name).with_context(|| {
                let known: Vec<_> = map.keys().map(String::as_str).collect();
                format!("template: {whole}: there is no field {name:?}; there are {}", known.join(", "))
            })?,
            Value::Null => &Value::Null,
            other => bail!("template: {whole}: {other} has no fields"),
        };
    }
    Ok(value.clone())
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
pub fn shown(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(shown).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let entries = map.iter().map(|(key, value)| format!("{key}:{}", shown(value)));
            format!("map[{}]", entries.collect::<Vec<_>>().join(" "))
        }
        other => other.to_string(),
    }
}

/// Prints rows by a `--format`: `json`, `table …`, or a template for each.
pub fn print(format: &str, rows: &[Value]) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut text = String::new();
    if format == "json" {
        rows.iter().for_each(|row| text.push_str(&format!("{row}\n")));
    } else if let Some(columns) = format.strip_prefix("table") {
        let template = Template::parse(columns.trim_start())?;
        let titles = template.titles().render(&Value::Null)?;
        let mut table = super::table::Table::new(&titles.split('\t').collect::<Vec<_>>());
        for row in rows {
            table.row(template.render(row)?.split('\t').map(ToOwned::to_owned));
        }
        text = table.text(super::table::terminal_width());
    } else {
        let template = Template::parse(format)?;
        for row in rows {
            text.push_str(&template.render(row)?);
            text.push('\n');
        }
    }
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_people_use_with_docker() {
        let value = json!({
            "Name": "/web", "Id": "abc", "Running": true, "Labels": {"a": "1", "b": "2"}, "Args": ["x", "y"],
            "State": {"Status": "running", "ExitCode": 0}, "Mounts": [{"Source": "/s"}, {"Source": "/t"}],
        });
        for (template, expected) in [
            ("{{.Name}} {{.State.Status}}", "/web running"),
            ("{{json .Args}}", "[\"x\",\"y\"]"),
            ("{{.Args | json}}", "[\"x\",\"y\"]"),
            ("{{index .Labels \"b\"}}{{index .Args 1}}", "2y"),
            ("{{join .Args \"-\"}} {{len .Mounts}}", "x-y 2"),
            ("{{range .Mounts}}{{.Source}};{{end}}", "/s;/t;"),
            ("{{range $k, $v := .Labels}}{{$k}}={{$v}} {{end}}", "a=1 b=2 "),
            ("{{range .Mounts}}{{$.Id}}{{end}}", "abcabc"),
            ("{{if .Running}}up{{else}}down{{end}}", "up"),
            ("{{if eq .State.Status \"exited\"}}e{{else if .Running}}r{{end}}", "r"),
            ("a {{- .Id -}} b", "aabcb"),
            ("{{.Args}} {{.Labels}}", "[x y] map[a:1 b:2]"),
            ("{{upper (index .Args 0)}}", "X"),
            ("{{printf \"%s-%d\" .Id 3}}", "abc-3"),
            ("{{with .State}}{{.ExitCode}}{{end}}", "0"),
        ] {
            assert_eq!(Template::parse(template).unwrap().render(&value).unwrap(), expected, "{template}");
        }
    }

    #[test]
    fn mistakes_are_told() {
        for template in ["{{.Name", "{{if .X}}", "{{end}}", "{{nope .Name}}", "{{.Nmae}}"] {
            let rendered =
                Template::parse(template).and_then(|template| template.render(&json!({"Name": 1})));
            assert!(rendered.is_err(), "{template}");
        }
    }
}
