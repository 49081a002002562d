use proptest::prelude::*;
use serde_json::json;

use super::*;

fn event(data: &Value) -> Value {
    json!({
        "id": "evt_1", "type": "order.paid", "timestamp": "2026-11-21T10:00:00Z", "tenant": "acme",
        "data": data,
    })
}

thread_local! {
    static STEPS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// A condition is asked whether it holds.
pub(super) fn count_step() {
    STEPS.set(STEPS.get() + 1);
}

fn filter(source: &Value) -> Filter {
    Filter::compile(source).unwrap()
}

#[test]
fn conditions_hold_or_not() {
    let paid = json!({
        "amount": 100, "currency": "EUR", "tags": ["vip", "new"], "none": null, "float": 1.0,
        "customer": {"name": "Ada", "address": {"city": "Bern"}},
        "items": [{"sku": "a1", "n": 1}, {"sku": "b2", "n": 5}],
        "a/b~": {"$odd": 1}, "matrix": [[1, 2], [3]], "big": 18_446_744_073_709_551_615_u64,
    });
    for (source, expected) in [
        (json!({"type": "order.paid", "tenant": "acme"}), true),
        (json!({"type": "order.made"}), false),
        (json!({"timestamp": {"$gte": "2026-11-21"}}), true),
        (json!({"data": {"amount": 100}}), true),
        (json!({"data": {"amount": 100.0}}), true),
        (json!({"data": {"amount": "100"}}), false),
        (json!({"data": {"amount": {"$gt": 99, "$lt": 101}}}), true),
        (json!({"data": {"amount": {"$gt": 100}}}), false),
        (json!({"data": {"amount": {"$gte": 100, "$lte": 100}}}), true),
        (json!({"data": {"amount": {"$gt": "99"}}}), false),
        (json!({"data": {"big": {"$gt": 18_446_744_073_709_551_614_u64}}}), true),
        (json!({"data": {"float": {"$eq": 1}}}), true),
        (json!({"data": {"currency": {"$in": ["CHF", "EUR"]}}}), true),
        (json!({"data": {"currency": {"$nin": ["CHF", "EUR"]}}}), false),
        (json!({"data": {"currency": {"$neq": "CHF"}}}), true),
        (json!({"data": {"currency": {"$startsWith": "E", "$endsWith": "R"}}}), true),
        (json!({"data": {"currency": {"$startsWith": "e"}}}), false),
        (json!({"data": {"amount": {"$startsWith": "1"}}}), false),
        (json!({"data": {"customer": {"address": {"city": "Bern"}}}}), true),
        (json!({"data": {"customer": {"address": {"street": "x"}}}}), false),
        (
            json!({"data": {"customer": {"$eq": {"name": "Ada", "address": {"city": "Bern"}}}}}),
            true,
        ),
        (json!({"data": {"customer": {"$eq": {"name": "Ada"}}}}), false),
        // What is not there is not equal to anything, not even null.
        (json!({"data": {"none": null}}), true),
        (json!({"data": {"gone": null}}), false),
        (json!({"data": {"gone": {"$neq": 1}}}), true),
        (json!({"data": {"gone": {"$nin": [1]}}}), true),
        (json!({"data": {"gone": {"$lt": 1}}}), false),
        (json!({"data": {"none": {"$exist": true}, "gone": {"$exist": false}}}), true),
        (json!({"data": {"none": {"$exist": false}}}), false),
        (json!({"data": {"gone": {"deeper": {"$exist": false}}}}), true),
        // An array matches if an element does.
        (json!({"data": {"tags": "vip"}}), true),
        (json!({"data": {"tags": "old"}}), false),
        (json!({"data": {"tags": ["vip", "new"]}}), true),
        (json!({"data": {"tags": ["new", "vip"]}}), false),
        (json!({"data": {"tags": {"$startsWith": "n"}}}), true),
        (json!({"data": {"tags": {"$in": ["old", "new"]}}}), true),
        (json!({"data": {"tags": {"$neq": "vip"}}}), false),
        (json!({"data": {"tags": {"$nin": ["old", "vip"]}}}), false),
        (json!({"data": {"tags": {"$not": "old"}}}), true),
        (json!({"data": {"items": {"sku": "b2", "n": 5}}}), true),
        (json!({"data": {"items": {"sku": "a1", "n": 5}}}), false),
        (json!({"data": {"items": {"$and": [{"sku": "a1"}, {"n": 5}]}}}), true),
        (json!({"data": {"items": {"n": {"$gt": 4}}}}), true),
        (json!({"data": {"matrix": [3]}}), true),
        (json!({"data": {"matrix": 3}}), false),
        (json!({"data": {"$or": [{"amount": 1}, {"tags": "vip"}]}}), true),
        (json!({"data": {"$or": [{"amount": 1}, {"tags": "old"}]}}), false),
        (json!({"data": {"amount": {"$or": [1, {"$gt": 50}]}}}), true),
        (json!({"$and": [{"type": "order.paid"}, {"data": {"amount": 100}}]}), true),
        (json!({"$not": {"data": {"amount": 100}}}), false),
        (json!({"data": {"$not": {"amount": {"$lt": 100}}}}), true),
        (json!({"data": {"a/b~": {"$exist": true}}}), true),
        // Branches may hold by different elements, unless something stands beside them.
        (json!({"data": {"tags": {"$and": ["vip", "new"]}}}), true),
        (json!({"data": {"tags": {"$and": ["vip", "old"]}}}), false),
        (json!({"data": {"items": {"$and": [{"$or": [{"sku": "a1"}]}, {"n": 5}]}}}), true),
        (json!({"data": {"items": {"$or": [{"sku": "x"}, {"n": 5}], "sku": "b2"}}}), true),
        (json!({"data": {"items": {"$or": [{"sku": "x"}, {"n": 5}], "sku": "a1"}}}), false),
        (json!({"data": {"items": {"$and": [{"n": 1}], "sku": "a1"}}}), true),
        (json!({"data": {"items": {"$and": [{"n": 5}], "sku": "a1"}}}), false),
        // What is about an array as a whole is so in branches, too.
        (json!({"data": {"items": {"$or": [{"$neq": 1}, {"n": 7}], "sku": "a1"}}}), true),
        (
            json!({"data": {"items": {"$or": [{"$exist": false}, {"$and": [{"$not": {"n": 5}}]}], "sku": "a1"}}}),
            false,
        ),
        (json!({"data": {"tags": {"$or": [{"$neq": "vip"}, "old"]}}}), false),
        (json!({"data": {"tags": {"$or": [{"$neq": "vip"}, "new"]}}}), true),
        (json!({"data": {"tags": {"$and": [{"$nin": ["old"]}, {"$startsWith": "v"}]}}}), true),
        (json!({"data": {"tags": {"$and": [{"$nin": ["new"]}, {"$startsWith": "v"}]}}}), false),
        (json!({"data": {"tags": {"$or": [["vip", "new"]]}}}), true),
        (json!({"data": {"matrix": {"$or": [3]}}}), false),
        (json!({"data": {"gone": {"$or": [{"$exist": false}, 1]}}}), true),
    ] {
        let (filter, event) = (filter(&source), event(&paid));
        assert_eq!(filter.matches(&event), expected, "{source}");
        assert_eq!(filter.explain(&event).is_ok(), expected, "{source}");
    }
}

#[test]
fn everything_that_is_wrong_is_named_at_once() {
    for (source, pointers) in [
        (json!({}), vec![""]),
        (json!([]), vec![""]),
        (json!("x"), vec![""]),
        (json!({"amount": 1, "data": {}}), vec!["/data", "/amount"]),
        (
            json!({"data": {"a/b": {"$regex": "x"}, "c": {"$in": 1}}}),
            vec!["/data/a~1b/$regex", "/data/c/$in"],
        ),
        (
            json!({"data": {"a": {"$gt": null, "$exist": 1, "$startsWith": 1}}}),
            vec!["/data/a/$exist", "/data/a/$gt", "/data/a/$startsWith"],
        ),
        (json!({"$or": [], "$and": [{"data": {"$lt": []}}]}), vec!["/$and/0/data/$lt", "/$or"]),
    ] {
        let wrong = Filter::compile(&source).unwrap_err();
        let named: Vec<&str> = wrong.iter().map(|wrong| wrong.pointer.as_str()).collect();
        assert_eq!(named, pointers, "{source}");
        assert!(serde_json::from_value::<Filter>(source).is_err());
    }
    let mut deep = json!(1);
    for _ in 0..40 {
        deep = json!({ "data": deep });
    }
    assert!(Filter::compile(&deep).is_err());
    let many: Vec<Value> = (0..200).map(Value::from).collect();
    assert!(Filter::compile(&json!({"data": {"$in": many}})).is_err());
}

#[test]
fn a_mismatch_names_the_condition_and_the_value() {
    let event = event(&json!({"amount": 99, "tags": ["a"], "name": "x".repeat(200)}));
    for (source, condition, value, detail) in [
        (
            json!({"data": {"amount": {"$gt": 100}}}),
            "/data/amount/$gt",
            "/data/amount",
            "99 is not greater than 100",
        ),
        (json!({"data": {"gone": 1}}), "/data/gone", "/data/gone", "nothing is not 1"),
        (json!({"data": {"tags": "b"}}), "/data/tags", "/data/tags", "none of the 1 elements"),
        (json!({"data": {"$or": [{"amount": 1}]}}), "/data/$or", "/data", "none of these 1"),
        (
            json!({"data": {"$and": [{"amount": 1}]}}),
            "/data/$and/0/amount",
            "/data/amount",
            "99 is not 1",
        ),
        (json!({"data": {"tags": {"$neq": "a"}}}), "/data/tags/$neq", "/data/tags", "is or has"),
    ] {
        let mismatch = filter(&source).explain(&event).unwrap_err();
        assert_eq!((mismatch.condition.as_str(), mismatch.value.as_str()), (condition, value));
        assert!(mismatch.detail.contains(detail), "{}", mismatch.detail);
    }
    let long = filter(&json!({"data": {"name": "y"}})).explain(&event).unwrap_err();
    assert!(long.detail.chars().count() < 200, "{}", long.detail);
}

/// Branches in branches over arrays in arrays: each of them once for each value.
#[test]
fn an_evaluation_is_linear_in_the_event() {
    let mut conditions = json!({ "$eq": "x" });
    for n in 0..14 {
        conditions = json!({ (if n % 2 == 0 { "$or" } else { "$and" }): [conditions] });
    }
    let filter = filter(&json!({ "data": conditions }));
    for depth in [1, 4, 8] {
        let mut data = json!(vec![1; 1000]);
        for _ in 1..depth {
            data = json!([data]);
        }
        STEPS.set(0);
        assert!(!filter.matches(&event(&data)));
        assert!(STEPS.get() <= 20 * 1001, "{depth} levels: {} steps", STEPS.get());
    }
    // A field that nobody has holds of the array and of each of its elements, so neither says enough.
    let mut chained =
        json!({ "$and": (0..60).map(|n| json!({ "$gt": n + 1 })).collect::<Vec<_>>() });
    for _ in 0..10 {
        chained = json!({ "none": { "$exist": false }, "$or": [chained] });
    }
    let filter = self::filter(&json!({ "data": chained }));
    STEPS.set(0);
    assert!(!filter.matches(&event(&json!(vec![1; 500]))));
    assert!(STEPS.get() <= MAX_CONDITIONS * 501, "{} steps", STEPS.get());
    let both =
        json!({ "$not": { "$or": [{ "$neq": 1 }, { "$not": { "$or": [{ "$gt": 5 }, "x"] } }] } });
    let filter = self::filter(&json!({ "data": both }));
    STEPS.set(0);
    assert!(!filter.matches(&event(&json!(vec![1; 1000]))));
    assert!(STEPS.get() <= 10 * 1001, "{} steps", STEPS.get());
}

/// A filter and an event may be written by the same hand, to keep everyone waiting.
#[test]
fn an_event_that_takes_too_many_steps_is_wanted() {
    let none_of = |count: usize| json!({ "$in": (0..count).map(|n| n + 2).collect::<Vec<_>>() });
    for (condition, each) in [
        (none_of(90), 90),
        (
            json!({ "$nin": (0..90).map(|n| n + 2).collect::<Vec<_>>(), "$not": { "$exist": true } }),
            90,
        ),
        (json!({ "$or": (0..45).map(|n| json!({ "$gt": n + 2 })).collect::<Vec<_>>() }), 90),
        (json!({ "$not": { "$not": none_of(90) } }), 90),
        (json!({ "a": none_of(90) }), 3),
    ] {
        let filter = filter(&json!({ "data": condition }));
        let few = MAX_STEPS / each / 2;
        let event_of = |elements: usize| event(&json!(vec![1; elements]));
        assert!(!filter.matches(&event_of(few)), "{condition}");
        assert!(filter.explain(&event_of(few)).is_err(), "{condition}");
        let many = event_of(3 * MAX_STEPS / each);
        STEPS.set(0);
        assert!(filter.matches(&many) && filter.explain(&many).is_ok(), "{condition}");
        assert!(STEPS.get() < 3 * MAX_STEPS, "{condition}: {} steps", STEPS.get());
        assert!(filter.most_steps(few) <= MAX_STEPS && filter.most_steps(MAX_STEPS) == MAX_STEPS);
    }
}

/// What conditions mean, without a thought for what it costs.
fn mean(conditions: &Conditions, value: Option<&Value>) -> bool {
    let as_it_is = || {
        conditions.each.iter().all(|each| each.holds(value, &Steps::unbounded()))
            && conditions.joined.iter().all(|joined| match joined {
                Joined::And(all) => all.iter().all(|branch| mean(branch, value)),
                Joined::Or(any) => any.iter().any(|branch| mean(branch, value)),
            })
    };
    let elements = value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    conditions.whole.iter().all(|whole| whole.holds(value, &Steps::unbounded()))
        && (as_it_is() || elements.iter().any(|element| mean_of(element, conditions, value)))
}

/// The same of an element of an array.
fn mean_of(element: &Value, conditions: &Conditions, array: Option<&Value>) -> bool {
    let holds = |branch: &Conditions| {
        branch.whole.iter().all(|whole| whole.holds(array, &Steps::unbounded()))
            && mean_of(element, branch, array)
    };
    conditions.each.iter().all(|each| each.holds(Some(element), &Steps::unbounded()))
        && conditions.joined.iter().all(|joined| match joined {
            Joined::And(all) => all.iter().all(holds),
            Joined::Or(any) => any.iter().any(holds),
        })
}

/// Conditions of every kind, on values and beside each other.
fn conditions() -> impl Strategy<Value = Value> {
    let plain = || {
        let operator = prop::sample::select(vec!["$eq", "$neq", "$gt", "$lte"]);
        (operator, -1_i64..3).prop_map(|(operator, number)| json!({ operator: number }))
    };
    let leaf = prop_oneof![
        plain(),
        any::<bool>().prop_map(|exists| json!({ "$exist": exists })),
        prop::collection::vec(-1_i64..3, 1..3).prop_map(|list| json!({ "$in": list })),
    ];
    leaf.prop_recursive(4, 16, 3, move |inner| {
        let list = || prop::collection::vec(inner.clone(), 1..3);
        let piece = prop_oneof![
            list().prop_map(|list| json!({ "$and": list })),
            list().prop_map(|list| json!({ "$or": list })),
            inner.clone().prop_map(|conditions| json!({ "$not": conditions })),
            inner.clone().prop_map(|conditions| json!({ "a": conditions })),
            plain(),
        ];
        prop::collection::vec(piece, 1..3).prop_map(|pieces| {
            let fields = pieces.into_iter().filter_map(|piece| piece.as_object().cloned());
            Value::Object(fields.flatten().collect())
        })
    })
}

/// Numbers in lists and objects, mostly.
fn numbers() -> impl Strategy<Value = Value> {
    (-1_i64..3).prop_map(Value::from).prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            inner.prop_map(|value| json!({ "a": value })),
        ]
    })
}

/// Values small enough that some of them meet.
fn values() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-2_i64..3).prop_map(Value::from),
        (-2.0_f64..3.0).prop_map(Value::from),
        "[ab]{0,2}".prop_map(Value::from),
    ];
    scalar.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[ab]", inner, 0..3)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn opposites_are_opposites(value in values(), other in values()) {
        let holds = |condition: Value| {
            filter(&json!({"data": {"a": condition}})).matches(&event(&json!({"a": value})))
        };
        let is_equal = holds(json!({ "$eq": other }));
        let [neq, is_in, nin, not] = [
            json!({ "$neq": other }),
            json!({ "$in": [other] }),
            json!({ "$nin": [other] }),
            json!({ "$not": { "$eq": other } }),
        ]
        .map(holds);
        prop_assert_eq!([is_equal, !is_equal, !is_equal], [is_in, neq, nin]);
        prop_assert_eq!(not, !is_equal);
        let [itself, exists] = [json!({ "$eq": value }), json!({ "$exist": true })].map(holds);
        prop_assert!(itself && exists);
    }

    #[test]
    fn an_evaluation_says_what_is_meant(source in conditions(), value in numbers()) {
        let compiled = filter(&json!({ "data": source }));
        let event = event(&value);
        prop_assert_eq!(compiled.matches(&event), mean(&compiled.conditions, Some(&event)));
    }

    #[test]
    fn a_single_branch_means_what_is_in_it(conditions in values(), other in values(), value in values()) {
        for inner in [conditions.clone(), json!({ "$neq": other }), json!({ "$not": conditions })] {
            let matches = |source: Value| {
                let compiled = Filter::compile(&json!({ "data": { "a": source } })).ok();
                compiled.map(|filter| filter.matches(&event(&json!({ "a": value }))))
            };
            let alone = matches(inner.clone());
            prop_assert_eq!(alone, matches(json!({ "$or": [inner] })));
            prop_assert_eq!(alone, matches(json!({ "$and": [inner] })));
        }
    }

    #[test]
    fn what_is_written_means_the_same_when_it_is_read_back(source in values(), value in values()) {
        let compiled = Filter::compile(&json!({"data": {"a": source}}));
        if let Ok(compiled) = compiled {
            let text = serde_json::to_string(&compiled).unwrap();
            let again: Filter = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(&again, &compiled);
            let event = event(&json!({ "a": value }));
            prop_assert_eq!(again.matches(&event), compiled.matches(&event));
            prop_assert_eq!(again.matches(&event), again.explain(&event).is_ok());
        }
    }
}
