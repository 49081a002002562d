use proptest::prelude::*;
use serde_json::json;

use super::*;

fn template(body: &str, content_type: &str) -> Template {
    let content_type = content_type.parse().unwrap();
    Template { body: body.to_owned(), content_type, sample: serde_json::Value::Null }
}

fn context() -> Context {
    Context::of(
        &json!({
            "id": "evt_1", "type": "order.paid", "timestamp": "2026-11-21T10:00:00Z", "tenant": "acme",
            "data": {
                "id": 7, "name": "Ada \"the first\" <b>\n", "amount": 1999, "none": null,
                "items": [{"sku": "a", "n": 1}, {"sku": "b", "n": 2}], "big": "x".repeat(10_000),
            },
        }),
        10_000,
    )
}

fn render(body: &str, content_type: &str) -> Result<String, TemplateError> {
    let template = template(body, content_type);
    template.check()?;
    template.render(&context()).map(|body| String::from_utf8(body).unwrap())
}

#[test]
fn values_are_written_as_the_content_type_asks() {
    for (body, content_type, expected) in [
        ("{{ type }} {{ data.amount / 100 }}", "text/plain", "order.paid 19.99"),
        ("{{ data.name }}", "text/plain", "Ada \"the first\" <b>\n"),
        ("{{ data.name }}", "text/html", "Ada &quot;the first&quot; &lt;b&gt;\n"),
        (
            r#"{"text": {{ "Paid by " ~ data.name }}}"#,
            "application/json",
            r#"{"text": "Paid by Ada \"the first\" <b>\n"}"#,
        ),
        (
            r#"{"data": {{ data.items }}}"#,
            "application/vnd.x+json",
            r#"{"data": [{"n":1,"sku":"a"},{"n":2,"sku":"b"}]}"#,
        ),
        (
            r#"[{% for item in data.items %}{{ item.sku }}{% if not loop.last %},{% endif %}{% endfor %}]"#,
            "application/json",
            r#"["a","b"]"#,
        ),
        (
            "{% for key, value in data.items[0]|items %}{{ key }}={{ value }};{% endfor %}",
            "text/plain",
            "n=1;sku=a;",
        ),
        (
            "{{ data.gone.deeper }}|{{ data.gone|default('nothing') }}|{{ data.none is none }}",
            "text/plain",
            "|nothing|True",
        ),
        (
            "{{ [data.id, type]|join(' ')|upper }} {{ 'a-b'|replace('-', '+') }} {{ 'abcdef'|truncate(3) }}",
            "text/plain",
            "7 ORDER.PAID a+b ab…",
        ),
        (
            "{{ data.items|length }} {{ (data.items|first).sku }} {{ data.items[-1].n }}",
            "text/plain",
            "2 a 2",
        ),
        (
            "{{ data.items|tojson(indent=1) }} {{ data.items|tojson(false) }}",
            "text/plain",
            "[\n {\n  \"n\": 1,\n  \"sku\": \"a\"\n },\n {\n  \"n\": 2,\n  \"sku\": \"b\"\n }\n] \
             [{\"n\":1,\"sku\":\"a\"},{\"n\":2,\"sku\":\"b\"}]",
        ),
        (
            "{{ data.name|tojson }} {{ \"it's & <\"|tojson }}",
            "text/html",
            r#""Ada \"the first\" \u003cb\u003e\n" "it\u0027s \u0026 \u003c""#,
        ),
        ("{{ ' xax '|trim }} {{ 'xax'|trim('yx') }}", "text/plain", "xax a"),
        (
            "{% for item in data.items|sort(attribute='n', reverse=true) %}{{ item.sku }}{% endfor %}",
            "text/plain",
            "ba",
        ),
    ] {
        assert_eq!(render(body, content_type).as_deref(), Ok(expected), "{body}");
    }
}

#[test]
fn what_could_grow_without_bound_is_not_allowed() {
    for body in [
        "{% set a = data.big ~ data.big %}",
        "{% with a = 1 %}{% endwith %}",
        "{% for a in [data.big ~ data.big] %}{% endfor %}",
        "{% for a in 'abc' %}{% endfor %}",
        "{% for a in range(10) %}{% endfor %}",
        "{% for a in data recursive %}{% endfor %}",
        "{% for a in data.items[:('x' * 1000000)|length] %}{% endfor %}",
        "{% for a in data.items[range(10):] %}{% endfor %}",
        "{% for a in data.items[::2 ** 100] %}{% endfor %}",
        "{% for a in data.items|sort(attribute='x' * 1000000) %}{% endfor %}",
        "{% for a in data.items|sort(*data.items) %}{% endfor %}",
        "{% for a in data %}{% for b in a %}{% for c in b %}{% for d in c %}{% endfor %}{% endfor %}{% endfor %}{% endfor %}",
        "{% filter upper %}x{% endfilter %}",
        "{% autoescape false %}x{% endautoescape %}",
        "{% macro m() %}x{% endmacro %}",
        "{% include 'x' %}",
        "{{ 'x' * 1000000 }}",
        "{{ 2 ** 100 }}",
        "{{ data.name.upper() }}",
        "{{ data|pprint }}",
        "{{ data|indent(1000000) }}",
        "{{ data.name|safe }}",
        &format!("{{{{ [{}] }}}}", ["data.items|list"; 17].join(",")),
        &format!("{{% for a in data{} %}}{{% endfor %}}", "|items".repeat(17)),
        &format!("{{{{ data{} }}}}", ".a".repeat(200)),
        &format!("{{% for a in data{} %}}{{% endfor %}}", ".a".repeat(200)),
        &format!("{{{{ {}1 }}}}", "not ".repeat(200)),
        &format!("{{{{ {}data.big }}}}", "data.big ~ ".repeat(65)),
        "{{ unclosed",
        "{% endif %}",
        &"x".repeat(MAX_SOURCE + 1),
    ] {
        let refused = render(body, "text/plain");
        assert!(matches!(refused, Err(TemplateError::Invalid(_))), "{body:.60}: {refused:?}");
    }
}

#[test]
fn a_template_that_takes_too_much_fails_in_time() {
    let list: Vec<u32> = (0..70_000).collect();
    let context =
        Context::of(&json!({"data": {"list": list, "text": "x".repeat(200_000)}}), 600_000);
    for (body, error) in [
        (
            "{% for a in data.list %}{% for b in data.list %}.{% endfor %}{% endfor %}",
            TemplateError::TooManySteps(800),
        ),
        ("{% for a in data.list %}{{ data.text }}{% endfor %}", TemplateError::TooLarge),
    ] {
        let template = template(body, "text/plain");
        assert_eq!((template.check(), template.render(&context)), (Ok(()), Err(error)));
    }
    // Nothing comes out of it, and it is the steps that end it.
    let busy = "{% for a in data.list %}{% if data.text|replace('x', 'yy') == data.text ~ data.text ~ a %}{% endif %}{% endfor %}";
    assert_eq!(
        template(busy, "text/plain").render(&context),
        Err(TemplateError::TooManySteps(800))
    );
    for body in [
        "{{ [data.text, data.text, data.text]|join }}",
        "{{ data.text|replace('x', 'xxxx') }}",
        "{{ data.text|replace('', 'xx') }}",
        "{{ data.text|replace('x', '\"')|tojson|tojson }}",
        "{{ data.list|tojson(true) }}",
        "{{ 1|tojson(indent=1000000000000) }}",
        "{{ data.text|list }}",
        "{{ data.text|sort }}",
        "{{ data.text|unique }}",
        "{{ data.list|sort(attribute=data.text) }}",
        "{{ data.list|unique(attribute='a,b,c,d,e') }}",
        "{{ data.text|trim(data.text) }}",
    ] {
        let failed = template(body, "text/plain").render(&context);
        assert!(matches!(failed, Err(TemplateError::Failed(_))), "{body}: {failed:?}");
    }
}

#[test]
fn what_is_not_json_is_not_sent_as_json() {
    let broken = r#"{"text": "{{ data.name }}"}"#;
    assert!(matches!(render(broken, "application/json"), Err(TemplateError::NotJson(_))));
    assert!(render(broken, "text/plain").is_ok());
    assert!(matches!(render("{{ data.items / 2 }}", "text/plain"), Err(TemplateError::Failed(_))));
}

#[test]
fn a_content_type_is_a_media_type() {
    for good in ["application/json", "text/plain; charset=utf-8", "application/vnd.api+json"] {
        assert_eq!(good.parse::<ContentType>().unwrap().as_str(), good);
    }
    for wrong in ["", "json", "a/", "/b", "a/b\r\nx: y", "a b/c", "A/B", &"x".repeat(101)] {
        assert_eq!(wrong.parse::<ContentType>(), Err(InvalidContentType), "{wrong}");
    }
}

proptest! {
    #[test]
    fn no_value_gets_out_of_its_place_in_json(text in any::<String>()) {
        let context = Context::of(&json!({ "data": { "text": text } }), text.len());
        let body = template(r#"{"a": {{ data.text }}, "b": 1}"#, "application/json").render(&context).unwrap();
        let read: serde_json::Value = serde_json::from_slice(&body).unwrap();
        prop_assert_eq!(read, json!({ "a": text, "b": 1 }));
    }
}
