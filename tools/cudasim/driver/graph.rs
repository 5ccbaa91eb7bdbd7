//! Graphs: nodes with dependencies, and what is instantiated from them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use super::error::{Error, Result};
use super::handles::fresh;
use super::op::Op;
use super::state::lock;

/// A node's handle. Unique in the process.
pub(super) type NodeId = usize;

/// One node.
#[derive(Clone)]
pub(super) struct Node {
    pub id: NodeId,
    pub op: Op,
    pub after: Vec<NodeId>,
    pub enabled: bool,
}

/// A graph that can be edited.
pub(super) struct Graph {
    pub handle: usize,
    nodes: Mutex<Vec<Node>>,
    /// Arrays that `cuGraphKernelNodeGetParams` handed out; they live as long as the graph.
    pub exposed: Mutex<Vec<Box<[usize]>>>,
}

/// An instantiated graph. Launching takes the nodes as they are then.
pub(super) struct Exec {
    pub handle: usize,
    pub flags: u64,
    pub nodes: Mutex<Arc<Vec<Node>>>,
}

impl Graph {
    /// An empty graph.
    pub fn new(handle: usize) -> Graph {
        Graph { handle, nodes: Mutex::default(), exposed: Mutex::default() }
    }

    /// Adds a node after `after`.
    pub fn add(&self, op: Op, after: Vec<NodeId>) -> NodeId {
        let id = fresh();
        lock(&self.nodes).push(Node { id, op, after, enabled: true });
        id
    }

    /// Adds a node whose dependencies come from the program.
    pub fn add_checked(&self, op: Op, after: Vec<NodeId>) -> Result<NodeId> {
        let distinct: HashSet<&NodeId> = after.iter().collect();
        if distinct.len() != after.len() || !after.iter().all(|node| self.contains(*node)) {
            return Err(Error::INVALID_VALUE);
        }
        Ok(self.add(op, after))
    }

    /// Whether a node is in this graph.
    pub fn contains(&self, node: NodeId) -> bool {
        lock(&self.nodes).iter().any(|own| own.id == node)
    }

    /// Whether a node of this graph allocates the memory at `addr`.
    pub fn allocates(&self, addr: u64) -> bool {
        lock(&self.nodes).iter().any(|node| matches!(&node.op, Op::Alloc(memory) if memory.address() == addr))
    }

    /// A copy of the nodes in the order of their creation.
    pub fn nodes(&self) -> Vec<Node> {
        lock(&self.nodes).clone()
    }

    /// Changes one node.
    pub fn edit<T>(&self, node: NodeId, change: impl FnOnce(&mut Node) -> Result<T>) -> Result<T> {
        let mut nodes = lock(&self.nodes);
        change(nodes.iter_mut().find(|own| own.id == node).ok_or(Error::INVALID_VALUE)?)
    }

    /// Removes a node and the edges to it.
    pub fn remove(&self, node: NodeId) {
        let mut nodes = lock(&self.nodes);
        nodes.retain(|own| own.id != node);
        for own in nodes.iter_mut() {
            own.after.retain(|other| *other != node);
        }
    }

    /// The nodes given and everything before them.
    pub fn ancestors(&self, of: &[NodeId]) -> HashSet<NodeId> {
        let nodes = lock(&self.nodes);
        let after: HashMap<NodeId, &[NodeId]> = nodes.iter().map(|node| (node.id, &node.after[..])).collect();
        let mut found = HashSet::new();
        let mut open = of.to_vec();
        while let Some(node) = open.pop() {
            if found.insert(node) {
                open.extend(after.get(&node).copied().unwrap_or_default());
            }
        }
        found
    }

    /// The nodes so that each comes after what it depends on, otherwise in the order of their creation.
    ///
    /// # Errors
    /// [`Error::INVALID_VALUE`] when they depend on each other in a circle.
    pub fn sorted(&self) -> Result<Vec<Node>> {
        let mut open = self.nodes();
        let mut done = HashSet::new();
        let mut sorted = Vec::with_capacity(open.len());
        while !open.is_empty() {
            let before = open.len();
            for node in std::mem::take(&mut open) {
                if node.after.iter().all(|other| done.contains(other)) {
                    done.insert(node.id);
                    sorted.push(node);
                } else {
                    open.push(node);
                }
            }
            if open.len() == before {
                return Err(Error::INVALID_VALUE);
            }
        }
        Ok(sorted)
    }
}

impl Exec {
    /// Instantiates a graph.
    pub fn new(handle: usize, flags: u64, nodes: Vec<Node>) -> Exec {
        Exec { handle, flags, nodes: Mutex::new(Arc::new(nodes)) }
    }

    /// Changes one node for the launches to come.
    pub fn edit<T>(&self, node: NodeId, change: impl FnOnce(&mut Node) -> Result<T>) -> Result<T> {
        let mut nodes = lock(&self.nodes);
        let nodes = Arc::make_mut(&mut nodes);
        change(nodes.iter_mut().find(|own| own.id == node).ok_or(Error::INVALID_VALUE)?)
    }
}

/// Why an update of an instantiated graph was refused: the number of `CUgraphExecUpdateResult`, and the node of the
/// new graph.
pub(super) struct Refused {
    pub result: u32,
    pub node: NodeId,
}

const TOPOLOGY_CHANGED: u32 = 2;
const NODE_TYPE_CHANGED: u32 = 3;
const PARAMETERS_CHANGED: u32 = 5;
const UNSUPPORTED_FUNCTION_CHANGE: u32 = 7;
const ATTRIBUTES_CHANGED: u32 = 8;

/// The nodes of `new` with the handles of `old`, if `old` may become `new`: same number and kinds of nodes, same
/// edges, and only such parameters changed as the driver allows.
pub(super) fn updated(old: &[Node], new: &[Node]) -> std::result::Result<Vec<Node>, Refused> {
    if old.len() != new.len() {
        return Err(Refused { result: TOPOLOGY_CHANGED, node: new.get(old.len()).map_or(0, |node| node.id) });
    }
    let place = |nodes: &[Node]| -> HashMap<NodeId, usize> {
        nodes.iter().enumerate().map(|(index, node)| (node.id, index)).collect()
    };
    let (old_place, new_place) = (place(old), place(new));
    let mut result = Vec::with_capacity(new.len());
    for (was, is) in old.iter().zip(new) {
        let refused = |result| Refused { result, node: is.id };
        if was.op.node_type() != is.op.node_type() {
            return Err(refused(NODE_TYPE_CHANGED));
        }
        let edges = |node: &Node, place: &HashMap<NodeId, usize>| -> HashSet<Option<usize>> {
            node.after.iter().map(|id| place.get(id).copied()).collect()
        };
        if edges(was, &old_place) != edges(is, &new_place) {
            return Err(refused(TOPOLOGY_CHANGED));
        }
        let op = match (&was.op, &is.op) {
            (Op::Kernel(old), Op::Kernel(new)) => {
                if old.function.module.context != new.function.module.context {
                    return Err(refused(UNSUPPORTED_FUNCTION_CHANGE));
                }
                if old.cooperative != new.cooperative {
                    return Err(refused(ATTRIBUTES_CHANGED));
                }
                is.op.clone()
            }
            (Op::Copy(old), Op::Copy(new)) => {
                if !old.may_become(new) {
                    return Err(refused(PARAMETERS_CHANGED));
                }
                is.op.clone()
            }
            (Op::Fill(old), Op::Fill(new)) => {
                if !old.may_become(new) {
                    return Err(refused(PARAMETERS_CHANGED));
                }
                is.op.clone()
            }
            (Op::Graph(old), Op::Graph(new)) => {
                Op::Graph(Arc::new(updated(old, new).map_err(|inner| refused(inner.result))?))
            }
            (Op::Alloc(_), Op::Alloc(_)) => was.op.clone(),
            _ => is.op.clone(),
        };
        result.push(Node { id: was.id, op, after: was.after.clone(), enabled: was.enabled });
    }
    Ok(result)
}
