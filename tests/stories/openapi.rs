//! The `OpenAPI` documents: what they say of each route is so.

use doorbell_tests::World;
use doorbell_tests::api::Api;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

const SUBSCRIPTIONS: &str = "/v1/tenants/acme/subscriptions";
/// The id that the document's examples have.
const EXAMPLE: &str = "sub_00000a0123456789abcdef01";

pub(crate) async fn every_example_is_carried_out() -> anyhow::Result<()> {
    let world = World::start("openapi").await?;
    let mut done = 0;
    for api in [&world.control, &world.producer] {
        let document = Document::read(api).await?;
        for (path, method, operation) in document.operations() {
            document.carry_out(&world.control, api, (&path, &method, &operation)).await?;
            done += 1;
        }
    }
    assert!(done > 35, "{done}");
    world.finish().await
}

pub(crate) async fn the_page_needs_nothing_from_elsewhere() -> anyhow::Result<()> {
    let world = World::start("docs").await?;
    for api in [&world.control, &world.producer] {
        let nobody = api.with_key("");
        let page = nobody.text("/docs").await?;
        assert!(page.contains("swagger-ui"), "{page}");
        let files: Vec<&str> = page
            .split(['"', '\''])
            .filter(|text| [".js", ".css"].iter().any(|end| text.ends_with(end)))
            .collect();
        assert!(files.len() >= 3, "{files:?}");
        for file in files {
            assert!(!file.contains("://"), "{file}");
            let text = nobody.text(&format!("/docs/{}", file.trim_start_matches("./"))).await?;
            assert!(!text.is_empty(), "{file}");
            assert!(!file.contains("initializer") || text.contains("/openapi.json"), "{text}");
        }
        let missing = nobody.raw(Method::GET, "/docs/nothing", &[], "").await?;
        assert_eq!(missing.status, 404);
    }
    world.finish().await
}

/// What a service says of itself.
struct Document(Value);

impl Document {
    /// Reads it, as everyone may.
    async fn read(api: &Api) -> anyhow::Result<Self> {
        let answer = api.with_key("").call(Method::GET, "/openapi.json", Value::Null).await?;
        assert_eq!((answer.status, &answer.body["openapi"]), (StatusCode::OK, &json!("3.1.1")));
        Ok(Self(answer.body))
    }

    fn operations(&self) -> Vec<(String, Method, Value)> {
        let mut all = Vec::new();
        for (path, operations) in self.0["paths"].as_object().into_iter().flatten() {
            for (method, operation) in operations.as_object().into_iter().flatten() {
                let method = method.to_uppercase().parse().unwrap();
                all.push((path.clone(), method, operation.clone()));
            }
        }
        all
    }

    /// Calls an operation as its example says, and compares the answer with what it says of it.
    async fn carry_out(
        &self,
        control: &Api,
        api: &Api,
        (path, method, operation): (&str, &Method, &Value),
    ) -> anyhow::Result<()> {
        let there = There::make(control).await?;
        let mut url = path
            .replace("/keys/{id}", &format!("/keys/{}", there.key))
            .replace("{tenant}", "acme")
            .replace("{id}", &there.subscription)
            .replace("{name}", "payment.succeeded");
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            if parameter["in"] == "query" && parameter["required"] == true {
                url = format!("{url}?{}={}", text(&parameter["name"]), text(&parameter["example"]));
            }
        }
        let content = operation["requestBody"]["content"].as_object().cloned().unwrap_or_default();
        let answers = operation["responses"].as_object().unwrap();
        let what = format!("{method} {url}");
        for (media_type, body) in content
            .iter()
            .map(|(name, media)| (name.as_str(), &media["example"]))
            .chain(content.is_empty().then_some(("application/json", &Value::Null)))
        {
            let body = if body.is_null() {
                String::new()
            } else if let Some(lines) = body.as_str() {
                lines.replace(EXAMPLE, &there.subscription)
            } else {
                body.to_string()
            };
            let answer = api.response(method, &url, media_type, body).await?;
            let status = answer.status();
            let said = answers.get(status.as_str()).filter(|_| status.is_success());
            let said = said.ok_or_else(|| anyhow::anyhow!("{what}: {status}"))?;
            for name in said["headers"].as_object().into_iter().flat_map(|headers| headers.keys()) {
                assert!(answer.headers().contains_key(name), "{what}: {name}");
            }
            let text = answer.text().await?;
            match said["content"].as_object().and_then(|content| content.iter().next()) {
                None => assert_eq!(text, "", "{what}"),
                Some((media_type, media)) if media_type == "application/json" => {
                    self.compare(&what, &media["schema"], &serde_json::from_str(&text)?);
                }
                Some((_, media)) => {
                    let each = &media["schema"]["contentSchema"];
                    assert!(each.is_object(), "{what}");
                    for line in text.lines() {
                        self.compare(&what, each, &serde_json::from_str(line)?);
                    }
                    assert!(text.contains("\"refused\":0"), "{what}: {text}");
                }
            }
        }
        Ok(())
    }

    fn compare(&self, what: &str, schema: &Value, answer: &Value) {
        let mut schema = schema.clone();
        schema["components"] = self.0["components"].clone();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let wrong: Vec<String> = validator.iter_errors(answer).map(|e| e.to_string()).collect();
        assert!(wrong.is_empty(), "{what}: {wrong:?} in {answer}");
    }
}

/// What operations are about, made anew for each.
struct There {
    subscription: String,
    key: String,
}

impl There {
    async fn make(control: &Api) -> anyhow::Result<Self> {
        for method in [Method::PUT, Method::DELETE] {
            control.call(method, "/v1/tenants/acme", Value::Null).await?;
        }
        let body = json!({ "url": "https://example.com/", "events": ["a.#"] });
        let subscription = control.call(Method::POST, SUBSCRIPTIONS, body).await?.body;
        let removing = format!("/v1/tenants/acme/events/{}", text(&subscription["id"]));
        control.call(Method::DELETE, &removing, Value::Null).await?;
        let body = json!({ "label": "example", "scopes": ["replay"] });
        let key = control.call(Method::POST, "/v1/tenants/acme/keys", body).await?.body;
        control.call(Method::PUT, "/v1/event-types/payment.succeeded", json!({})).await?;
        Ok(Self { subscription: text(&subscription["id"]), key: text(&key["id"]) })
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}
