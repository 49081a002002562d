//! What a caller's key must allow, for each route. A route that is not named here is the
//! operator's alone, so one that is forgotten is never open.

use std::sync::Arc;

use axum::extract::{Extension, MatchedPath, RawPathParams, Request};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use doorbell_common::api_key::{Scope, Whose};
use doorbell_common::ids::TenantId;
use doorbell_platform::auth::Caller;
use doorbell_platform::http::discard;
use doorbell_platform::problem::Problem;

/// The route whose tenant is not in its path: it asks by itself whether its caller may.
const NAMES_ITS_TENANT: &str = "/v1/config";

/// The routes beneath a tenant that its own keys may only read, if that.
const OF_THE_OPERATOR: [&str; 2] =
    ["/v1/tenants/{tenant}/limits", "/v1/tenants/{tenant}/events/{id}"];

/// The scope that a call needs.
pub(crate) fn needed(method: &Method, route: &str) -> Scope {
    let reads = method == Method::GET || method == Method::HEAD;
    match route {
        "/v1/tenants"
        | "/v1/tenants/{tenant}/subscriptions"
        | "/v1/tenants/{tenant}/subscriptions/{id}"
            if reads =>
        {
            Scope::SubscriptionsRead
        }
        "/v1/tenants/{tenant}" | "/v1/tenants/{tenant}/limits" if reads => Scope::SubscriptionsRead,
        // Read what they are sent, and change nothing.
        "/v1/tenants/{tenant}/filters/test" | "/v1/tenants/{tenant}/templates/preview" => {
            Scope::SubscriptionsRead
        }
        "/v1/tenants/{tenant}" if method == Method::PUT => Scope::SubscriptionsWrite,
        NAMES_ITS_TENANT if reads => Scope::SubscriptionsRead,
        NAMES_ITS_TENANT => Scope::SubscriptionsWrite,
        "/v1/event-types" | "/v1/event-types/{name}" | "/v1/catalogue" if reads => {
            Scope::SubscriptionsRead
        }
        // Whoever knows a secret can sign as we do, so to see one takes more than to see the rest.
        "/v1/tenants/{tenant}/subscriptions"
        | "/v1/tenants/{tenant}/subscriptions/bulk"
        | "/v1/tenants/{tenant}/subscriptions/bulk/delete"
        | "/v1/tenants/{tenant}/subscriptions/bulk/update"
        | "/v1/tenants/{tenant}/subscriptions/{id}"
        | "/v1/tenants/{tenant}/subscriptions/{id}/secret"
        | "/v1/tenants/{tenant}/subscriptions/{id}/secret/rotate"
        | "/v1/tenants/{tenant}/subscriptions/{id}/test"
        | "/v1/tenants/{tenant}/subscriptions/{id}/verify" => Scope::SubscriptionsWrite,
        _ => Scope::Admin,
    }
}

/// Whether what is there is for every tenant to read.
fn is_for_all(route: &str) -> bool {
    ["/v1/event-types", "/v1/event-types/{name}", "/v1/catalogue"].contains(&route)
}

/// Lets a call through if its caller may make it.
pub(crate) async fn check(
    Extension(caller): Extension<Arc<Caller>>,
    route: MatchedPath,
    params: RawPathParams,
    request: Request,
    next: Next,
) -> Response {
    let tenant = params.iter().find(|(name, _)| *name == "tenant").map(|(_, value)| value);
    match judge(&caller, request.method(), route.as_str(), tenant) {
        Ok(()) => next.run(request).await,
        Err(problem) => {
            discard(request.into_body()).await;
            problem.into_response()
        }
    }
}

fn judge(
    caller: &Caller,
    method: &Method,
    route: &str,
    tenant: Option<&str>,
) -> Result<(), Problem> {
    // What is no tenant's id is nobody's own; the route itself says what is wrong with it.
    let tenant = tenant.and_then(|text| text.parse::<TenantId>().ok());
    let needed = needed(method, route);
    let whose = match &tenant {
        // Nobody sets his own limits, or uses up what there is for all.
        Some(_) if OF_THE_OPERATOR.contains(&route) && needed == Scope::Admin => Whose::Everyones,
        Some(tenant) => Whose::Tenant(tenant),
        None if route == NAMES_ITS_TENANT => Whose::Anyones,
        None if is_for_all(route) && needed == Scope::SubscriptionsRead => Whose::Anyones,
        None => Whose::Everyones,
    };
    caller.check(needed, whose)
}

#[cfg(test)]
mod tests {
    use doorbell_common::api_key::Grant;

    use super::*;

    #[test]
    fn what_is_not_named_is_the_operators() {
        assert_eq!(needed(&Method::GET, "/v1/new"), Scope::Admin);
        assert_eq!(needed(&Method::POST, "/v1/tenants/{tenant}/new"), Scope::Admin);
        assert_eq!(needed(&Method::DELETE, "/v1/tenants/{tenant}"), Scope::Admin);
        assert_eq!(needed(&Method::GET, "/v1/tenants/{tenant}/keys"), Scope::Admin);
    }

    #[test]
    fn what_is_there_for_all_is_the_operators_to_use() {
        let admin = |tenant: Option<&str>| Caller {
            grant: Grant {
                scopes: vec![Scope::Admin],
                tenant: tenant.map(|tenant| tenant.parse().unwrap()),
            },
            key: None,
        };
        let removing = "/v1/tenants/{tenant}/events/{id}";
        let removal = "/v1/tenants/{tenant}/events/{id}/removal";
        for (method, route, bound, allowed) in [
            (Method::DELETE, removing, Some("acme"), false),
            (Method::DELETE, removing, None, true),
            (Method::GET, removal, Some("acme"), true),
            (Method::GET, removal, Some("other"), false),
            (Method::PUT, "/v1/tenants/{tenant}/limits", Some("acme"), false),
            (Method::GET, "/v1/tenants/{tenant}/limits", Some("acme"), true),
        ] {
            let judged = judge(&admin(bound), &method, route, Some("acme"));
            assert_eq!(judged.is_ok(), allowed, "{method} {route} {bound:?}");
        }
    }

    #[test]
    fn to_see_a_secret_takes_more_than_to_read() {
        let caller = Caller {
            grant: Grant {
                scopes: vec![Scope::SubscriptionsRead],
                tenant: Some("acme".parse().unwrap()),
            },
            key: None,
        };
        let subscription = "/v1/tenants/{tenant}/subscriptions/{id}";
        let secret = "/v1/tenants/{tenant}/subscriptions/{id}/secret";
        for (route, tenant, allowed) in [
            (subscription, Some("acme"), true),
            (subscription, Some("other"), false),
            (subscription, Some("a b"), false),
            (secret, Some("acme"), false),
            ("/v1/tenants", None, false),
            ("/v1/event-types", None, true),
        ] {
            let judged = judge(&caller, &Method::GET, route, tenant);
            assert_eq!(judged.is_ok(), allowed, "{route} {tenant:?}");
        }
    }
}
