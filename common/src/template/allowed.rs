//! What a template may say. Fuel bounds its steps, and not what a step makes: a text that is put
//! together with itself, thirty times over, is a thousand million bytes. So there is nothing to
//! remember a value under but the elements of the event's own lists, and texts are put together, and lists
//! made, so many times at most.

use minijinja::machinery::ast::{BinOpKind, CallArg, Expr, Stmt};
use minijinja::machinery::parse;
use minijinja::syntax::SyntaxConfig;

use super::filters::{OF_LISTS, OF_VALUES};

/// How often texts may be put together, in all of a template.
const MAX_JOINS: usize = 32;
/// How often lists may be made of the event's, in all of a template: one may take twenty times what it
/// takes in the event.
const MAX_LISTS: usize = 16;
/// How many steps an expression may take to its innermost value: `data.a.b` takes two. Whoever reads it
/// goes down all of them.
const MAX_DEPTH: usize = 200;
/// How deep loops may be in each other: each goes over all that the event has.
const MAX_LOOPS: usize = 3;

/// Says what a template may not.
pub(super) fn check(source: &str) -> Result<(), String> {
    let template = parse(source, "template", SyntaxConfig::default())
        .map_err(|error| format!("can't be read: {error}"))?;
    let mut reading = Reading::default();
    reading.statement(&template)?;
    if reading.joins > MAX_JOINS {
        return Err(format!("puts texts together more than {MAX_JOINS} times"));
    }
    if reading.lists > MAX_LISTS {
        let filters = OF_LISTS.join(", ");
        return Err(format!("has more than {MAX_LISTS} filters that make lists ({filters})"));
    }
    Ok(())
}

#[derive(Default)]
struct Reading {
    joins: usize,
    lists: usize,
    loops: usize,
    depth: usize,
}

type Allowed = Result<(), String>;

impl Reading {
    fn statements(&mut self, statements: &[Stmt<'_>]) -> Allowed {
        statements.iter().try_for_each(|statement| self.statement(statement))
    }

    fn statement(&mut self, statement: &Stmt<'_>) -> Allowed {
        match statement {
            Stmt::Template(template) => self.statements(&template.children),
            Stmt::EmitRaw(_) => Ok(()),
            Stmt::EmitExpr(emit) => self.expression(&emit.expr),
            Stmt::IfCond(condition) => {
                self.expression(&condition.expr)?;
                self.statements(&condition.true_body)?;
                self.statements(&condition.false_body)
            }
            Stmt::ForLoop(each) => {
                if each.recursive || self.loops >= MAX_LOOPS {
                    return Err(format!(
                        "may have at most {MAX_LOOPS} loops in each other, none of them recursive"
                    ));
                }
                if !is_of_the_event(&each.iter) {
                    return Err(
                        "may only loop over what the event has, such as data.items or data|items"
                            .to_owned(),
                    );
                }
                self.expression(&each.iter)?;
                each.filter_expr.iter().try_for_each(|filter| self.expression(filter))?;
                self.loops += 1;
                self.statements(&each.body)?;
                self.loops -= 1;
                self.statements(&each.else_body)
            }
            Stmt::WithBlock(_)
            | Stmt::Set(_)
            | Stmt::SetBlock(_)
            | Stmt::AutoEscape(_)
            | Stmt::FilterBlock(_)
            | Stmt::Do(_) => Err("may have no other statements than if and for".to_owned()),
        }
    }

    fn expression(&mut self, expression: &Expr<'_>) -> Allowed {
        self.deeper(|reading| reading.parts_of(expression))
    }

    fn deeper(&mut self, read: impl FnOnce(&mut Self) -> Allowed) -> Allowed {
        if self.depth >= MAX_DEPTH {
            return Err(format!("has an expression of more than {MAX_DEPTH} steps"));
        }
        self.depth += 1;
        read(self)?;
        self.depth -= 1;
        Ok(())
    }

    fn expressions<'a>(&mut self, all: impl IntoIterator<Item = &'a Expr<'a>>) -> Allowed {
        all.into_iter().try_for_each(|expression| self.expression(expression))
    }

    fn parts_of(&mut self, expression: &Expr<'_>) -> Allowed {
        match expression {
            Expr::Var(_) | Expr::Const(_) => Ok(()),
            Expr::Slice(slice) => {
                self.expression(&slice.expr)?;
                let bounds = [&slice.start, &slice.stop, &slice.step];
                bounds.into_iter().flatten().try_for_each(|bound| self.expression(bound))
            }
            Expr::UnaryOp(operation) => self.expression(&operation.expr),
            Expr::BinOp(operation) => {
                match operation.op {
                    BinOpKind::Mul | BinOpKind::Pow => {
                        return Err("may not multiply: that makes texts longer, too".to_owned());
                    }
                    BinOpKind::Concat | BinOpKind::Add => self.joins += 1,
                    BinOpKind::Eq
                    | BinOpKind::Ne
                    | BinOpKind::Lt
                    | BinOpKind::Lte
                    | BinOpKind::Gt
                    | BinOpKind::Gte
                    | BinOpKind::ScAnd
                    | BinOpKind::ScOr
                    | BinOpKind::Sub
                    | BinOpKind::Div
                    | BinOpKind::FloorDiv
                    | BinOpKind::Rem
                    | BinOpKind::In => {}
                }
                self.expression(&operation.left)?;
                self.expression(&operation.right)
            }
            Expr::Compare(comparison) => {
                self.expression(&comparison.expr)?;
                comparison.ops.iter().try_for_each(|next| self.expression(&next.expr))
            }
            Expr::IfExpr(choice) => {
                self.expression(&choice.test_expr)?;
                self.expression(&choice.true_expr)?;
                choice.false_expr.iter().try_for_each(|other| self.expression(other))
            }
            Expr::Filter(filter) => {
                if !OF_LISTS.contains(&filter.name) && !OF_VALUES.contains(&filter.name) {
                    let known = [OF_VALUES.as_slice(), &OF_LISTS].concat().join(", ");
                    return Err(format!("has no filter {:?}: there are {known}", filter.name));
                }
                self.lists += usize::from(OF_LISTS.contains(&filter.name));
                filter.expr.iter().try_for_each(|inner| self.expression(inner))?;
                self.arguments(&filter.args)
            }
            Expr::Test(test) => {
                self.expression(&test.expr)?;
                self.arguments(&test.args)
            }
            Expr::GetAttr(path) => self.expression(&path.expr),
            Expr::GetItem(path) => {
                self.expression(&path.expr)?;
                self.expression(&path.subscript_expr)
            }
            Expr::Call(_) => Err("may not call functions".to_owned()),
            Expr::List(list) => self.expressions(&list.items),
            Expr::Tuple(tuple) => self.expressions(&tuple.items),
            Expr::Map(map) => {
                self.expressions(&map.keys)?;
                self.expressions(&map.values)
            }
        }
    }

    fn arguments(&mut self, arguments: &[CallArg<'_>]) -> Allowed {
        arguments.iter().try_for_each(|argument| match argument {
            CallArg::Pos(value) | CallArg::Kwarg(_, value) => self.expression(value),
            CallArg::PosSplat(_) | CallArg::KwargSplat(_) => {
                Err("may not spread arguments".to_owned())
            }
        })
    }
}

/// Whether an expression is something that the event has, and no more than that. All the same its parts have to be
/// looked at.
fn is_of_the_event(mut expression: &Expr<'_>) -> bool {
    loop {
        expression = match expression {
            Expr::Var(_) => return true,
            Expr::GetAttr(path) => &path.expr,
            Expr::GetItem(path) => &path.expr,
            Expr::Slice(slice) => &slice.expr,
            Expr::Filter(filter) if OF_LISTS.contains(&filter.name) => match &filter.expr {
                Some(inner) => inner,
                None => return false,
            },
            Expr::Filter(_)
            | Expr::Const(_)
            | Expr::UnaryOp(_)
            | Expr::BinOp(_)
            | Expr::Compare(_)
            | Expr::IfExpr(_)
            | Expr::Test(_)
            | Expr::Call(_)
            | Expr::List(_)
            | Expr::Tuple(_)
            | Expr::Map(_) => return false,
        };
    }
}
