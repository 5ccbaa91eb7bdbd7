//! The entry points of graphs.

use std::sync::Arc;

use super::capture::refuse_unsafe;
use super::entry::{In, Out, api};
use super::error::{Error, Result};
use super::fault::Kind;
use super::graph::{Exec, Graph, Node, NodeId, updated};
use super::launch::{Asked, Launch};
use super::op::Op;
use super::state::{Context, current, driver, lock};
use super::stream::{open, submit};
use super::transfer::{Memcpy3D, described, filling};

/// `CUDA_KERNEL_NODE_PARAMS`; version 2 goes on with a `CUkernel` and a context.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct KernelParams {
    function: usize,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    params: usize,
    extra: usize,
}

/// Version 2 of the same.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct KernelParams2 {
    first: KernelParams,
    kernel: usize,
    context: usize,
}

/// `CUDA_MEMSET_NODE_PARAMS`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct MemsetParams {
    to: u64,
    pitch: usize,
    value: u32,
    element: u32,
    width: usize,
    height: usize,
}

/// `CUDA_HOST_NODE_PARAMS`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct HostParams {
    function: usize,
    data: usize,
}

/// `CUgraphExecUpdateResultInfo`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UpdateInfo {
    result: u32,
    node: usize,
    from: usize,
}

fn graph(handle: usize) -> Result<Arc<Graph>> {
    driver()?.graphs.get(handle).map_err(|_| Error::INVALID_VALUE)
}

fn exec(handle: usize) -> Result<Arc<Exec>> {
    driver()?.execs.get(handle).map_err(|_| Error::INVALID_VALUE)
}

/// The graph that a node is in.
fn graph_of(node: NodeId) -> Result<Arc<Graph>> {
    driver()?.graphs.all().into_iter().find(|graph| graph.contains(node)).ok_or(Error::INVALID_VALUE)
}

fn node(id: NodeId) -> Result<Node> {
    graph_of(id)?.edit(id, |node| Ok(node.clone()))
}

fn add(
    out: Out<usize>,
    graph: usize,
    after: In<usize>,
    count: usize,
    op: impl FnOnce() -> Result<Op>,
) -> Result {
    out.check()?;
    current()?;
    let graph = self::graph(graph)?;
    let after = after.get_all(count)?;
    out.set(graph.add_checked(op()?, after)?)
}

fn kernel_op(params: KernelParams, cooperative: bool) -> Result<Op> {
    let driver = driver()?;
    let function = driver.functions.get(params.function).map_err(|_| Error::INVALID_VALUE)?;
    let context: Arc<Context> = driver.contexts.get(function.module.context)?;
    let asked = Asked {
        grid: params.grid,
        block: params.block,
        dynamic_shared: params.shared,
        params: params.params,
        extra: params.extra,
        cooperative,
    };
    Ok(Op::Kernel(Arc::new(Launch::new(&context, function, &asked)?)))
}

fn copy_op(params: In<Memcpy3D>) -> Result<Op> {
    Ok(described(params)?.map_or(Op::Empty, Op::Copy))
}

fn memset_op(p: MemsetParams) -> Result<Op> {
    Ok(Op::Fill(filling(p.to, p.pitch, p.value, p.element, p.width, p.height)?))
}

fn host_op(params: HostParams) -> Result<Op> {
    if params.function == 0 {
        return Err(Error::INVALID_VALUE);
    }
    Ok(Op::Host { function: params.function, data: params.data })
}

/// The parameters of a kernel node. The pointers in them live as long as the graph.
fn kernel_params(id: NodeId) -> Result<KernelParams> {
    let graph = graph_of(id)?;
    let Op::Kernel(launch) = node(id)?.op else { return Err(Error::INVALID_VALUE) };
    let params = &launch.function.kernel()?.params;
    let mut exposed = lock(&graph.exposed);
    let words = launch.params.len().div_ceil(8);
    let mut values = vec![0usize; words.max(1)].into_boxed_slice();
    for (word, chunk) in values.iter_mut().zip(launch.params.chunks(8)) {
        *word = chunk.iter().rev().fold(0, |value, &byte| value << 8 | usize::from(byte));
    }
    let base = values.as_ptr() as usize;
    let pointers: Box<[usize]> = params.iter().map(|param| base + param.offset as usize).collect();
    let result = KernelParams {
        function: launch.function.handle,
        grid: launch.grid,
        block: launch.block,
        shared: launch.dynamic_shared,
        params: if pointers.is_empty() { 0 } else { pointers.as_ptr() as usize },
        extra: 0,
    };
    exposed.push(values);
    exposed.push(pointers);
    Ok(result)
}

/// Gives a node of a graph another operation of the same kind.
fn set(id: NodeId, op: Op) -> Result {
    graph_of(id)?.edit(id, |node| {
        if node.op.node_type() != op.node_type() {
            return Err(Error::INVALID_VALUE);
        }
        node.op = op;
        Ok(())
    })
}

fn set_kernel(id: NodeId, params: KernelParams) -> Result {
    let cooperative = matches!(node(id)?.op, Op::Kernel(launch) if launch.cooperative);
    set(id, kernel_op(params, cooperative)?)
}

/// Gives a node of an instantiated graph another operation, as far as the driver allows.
fn exec_set(handle: usize, id: NodeId, op: impl FnOnce(&Op) -> Result<Op>) -> Result {
    exec(handle)?.edit(id, |node| {
        let op = op(&node.op)?;
        let new = [Node { op, ..node.clone() }];
        let old = [node.clone()];
        match updated(&old, &new) {
            Ok(mut nodes) => {
                node.op = nodes.remove(0).op;
                Ok(())
            }
            Err(_) => Err(Error::INVALID_VALUE),
        }
    })
}

fn exec_set_kernel(handle: usize, id: NodeId, params: KernelParams) -> Result {
    exec_set(handle, id, |old| match old {
        Op::Kernel(launch) => kernel_op(params, launch.cooperative),
        _ => Err(Error::INVALID_VALUE),
    })
}

fn instantiate(out: Out<usize>, graph: usize, flags: u64) -> Result {
    out.check()?;
    let driver = driver()?;
    current()?;
    let graph = self::graph(graph)?;
    // Free on launch, upload, device launch (not here), node priority.
    if flags & !0xf != 0 {
        return Err(Error::INVALID_VALUE);
    }
    if flags & 4 != 0 {
        return Err(Error::NOT_SUPPORTED);
    }
    let nodes = graph.sorted()?;
    out.set(driver.execs.insert(|handle| Exec::new(handle, flags, nodes)).handle)
}

fn update(handle: usize, with: usize) -> Result<std::result::Result<(), UpdateInfo>> {
    current()?;
    let (exec, graph) = (exec(handle)?, graph(with)?);
    let new = graph.sorted()?;
    let mut nodes = lock(&exec.nodes);
    match updated(&nodes, &new) {
        Ok(next) => {
            *nodes = Arc::new(next);
            Ok(Ok(()))
        }
        Err(refused) => Ok(Err(UpdateInfo { result: refused.result, node: refused.node, from: 0 })),
    }
}

/// Kernels in a graph, those of its child graphs too.
fn kernels(nodes: &[Node]) -> usize {
    let own = nodes.iter().filter(|node| node.enabled).map(|node| match &node.op {
        Op::Kernel(_) => 1,
        Op::Graph(child) => kernels(child),
        _ => 0,
    });
    own.sum()
}

fn launch(handle: usize, stream: usize) -> Result {
    let (driver, context, stream) = open(stream)?;
    let exec = exec(handle)?;
    let nodes = lock(&exec.nodes).clone();
    if stream.capture().is_none() {
        for _ in 0..kernels(&nodes) {
            driver.inject(Kind::Launch, &context.device)?;
        }
    }
    submit(driver, &context, &stream, Op::Graph(nodes))
}

/// Stores up to `count` values and how many there are, as the listing functions do.
fn listed(out: Out<usize>, count: Out<usize>, values: Vec<usize>) -> Result {
    count.check()?;
    if out.is_null() {
        return count.set(values.len());
    }
    let room = count.get()?;
    let found = values.len().min(room);
    let padding = room - found;
    out.set_all(values.into_iter().take(found).chain(std::iter::repeat_n(0, padding)))?;
    count.set(found)
}

fn edges(graph: usize, from: Out<usize>, to: Out<usize>, count: Out<usize>) -> Result {
    let nodes = self::graph(graph)?.nodes();
    let pairs: Vec<(usize, usize)> =
        nodes.iter().flat_map(|node| node.after.iter().map(|other| (*other, node.id))).collect();
    count.check()?;
    if from.is_null() || to.is_null() {
        return count.set(pairs.len());
    }
    let room = count.get()?;
    from.set_all(pairs.iter().take(room).map(|pair| pair.0))?;
    to.set_all(pairs.iter().take(room).map(|pair| pair.1))?;
    count.set(pairs.len().min(room))
}

fn dependents(node: NodeId) -> Result<Vec<NodeId>> {
    let all = graph_of(node)?.nodes();
    Ok(all.iter().filter(|own| own.after.contains(&node)).map(|own| own.id).collect())
}

/// `CUgraphEdgeData` of edges that were just listed: 8 bytes each, zero for the plain order that all edges here have.
fn plain_edges(data: Out<u64>, listed: Out<usize>, count: Out<usize>) -> Result {
    if data.is_null() || listed.is_null() {
        return Ok(());
    }
    data.set_all(std::iter::repeat_n(0, count.get()?))
}

fn add_edges(graph: usize, from: In<usize>, to: In<usize>, count: usize, wanted: bool) -> Result {
    let graph = self::graph(graph)?;
    for (from, to) in from.get_all(count)?.into_iter().zip(to.get_all(count)?) {
        if from == to || !graph.contains(from) {
            return Err(Error::INVALID_VALUE);
        }
        graph.edit(to, |node| match node.after.iter().position(|own| *own == from) {
            None if wanted => {
                node.after.push(from);
                Ok(())
            }
            Some(index) if !wanted => {
                node.after.remove(index);
                Ok(())
            }
            _ => Err(Error::INVALID_VALUE),
        })?;
    }
    Ok(())
}

api! {
    fn cuGraphCreate(graph: Out<usize>, flags: u32) {
        graph.check()?;
        if flags != 0 {
            return Err(Error::INVALID_VALUE);
        }
        graph.set(driver()?.graphs.insert(Graph::new).handle)
    }

    fn cuGraphDestroy(graph: usize) {
        driver()?.graphs.remove(graph).map(|_| ()).map_err(|_| Error::INVALID_VALUE)
    }

    fn cuGraphClone(clone: Out<usize>, original: usize) {
        clone.check()?;
        let original = graph(original)?;
        let made = driver()?.graphs.insert(Graph::new);
        let mut renamed = std::collections::HashMap::new();
        for node in original.sorted()? {
            let after = node.after.iter().filter_map(|id| renamed.get(id).copied()).collect();
            renamed.insert(node.id, made.add(node.op, after));
        }
        clone.set(made.handle)
    }

    fn cuGraphAddKernelNode(node: Out<usize>, graph: usize, after: In<usize>, count: usize, params: In<KernelParams>) {
        add(node, graph, after, count, || kernel_op(params.get()?, false))
    }

    fn cuGraphAddKernelNode_v2(
        node: Out<usize>,
        graph: usize,
        after: In<usize>,
        count: usize,
        params: In<KernelParams2>,
    ) {
        add(node, graph, after, count, || kernel_op(params.get()?.first, false))
    }

    fn cuGraphAddMemcpyNode(
        node: Out<usize>,
        graph: usize,
        after: In<usize>,
        count: usize,
        params: In<Memcpy3D>,
        _context: usize,
    ) {
        add(node, graph, after, count, || copy_op(params))
    }

    fn cuGraphAddMemsetNode(
        node: Out<usize>,
        graph: usize,
        after: In<usize>,
        count: usize,
        params: In<MemsetParams>,
        _context: usize,
    ) {
        add(node, graph, after, count, || memset_op(params.get()?))
    }

    fn cuGraphAddHostNode(node: Out<usize>, graph: usize, after: In<usize>, count: usize, params: In<HostParams>) {
        add(node, graph, after, count, || host_op(params.get()?))
    }

    fn cuGraphAddEmptyNode(node: Out<usize>, graph: usize, after: In<usize>, count: usize) {
        add(node, graph, after, count, || Ok(Op::Empty))
    }

    fn cuGraphAddChildGraphNode(node: Out<usize>, graph: usize, after: In<usize>, count: usize, child: usize) {
        add(node, graph, after, count, || Ok(Op::Graph(Arc::new(self::graph(child)?.sorted()?))))
    }

    fn cuGraphAddEventRecordNode(node: Out<usize>, graph: usize, after: In<usize>, count: usize, event: usize) {
        add(node, graph, after, count, || Ok(Op::Record(driver()?.events.get(event)?)))
    }

    fn cuGraphAddEventWaitNode(node: Out<usize>, graph: usize, after: In<usize>, count: usize, event: usize) {
        add(node, graph, after, count, || Ok(Op::Await(driver()?.events.get(event)?)))
    }

    fn cuGraphAddDependencies(graph: usize, from: In<usize>, to: In<usize>, count: usize) {
        add_edges(graph, from, to, count, true)
    }

    fn cuGraphAddDependencies_v2(graph: usize, from: In<usize>, to: In<usize>, _edges: usize, count: usize) {
        add_edges(graph, from, to, count, true)
    }

    fn cuGraphRemoveDependencies_v2(graph: usize, from: In<usize>, to: In<usize>, _edges: usize, count: usize) {
        add_edges(graph, from, to, count, false)
    }

    fn cuGraphRemoveDependencies(graph: usize, from: In<usize>, to: In<usize>, count: usize) {
        add_edges(graph, from, to, count, false)
    }

    fn cuGraphDestroyNode(node: usize) {
        graph_of(node)?.remove(node);
        Ok(())
    }

    fn cuGraphGetNodes(graph: usize, nodes: Out<usize>, count: Out<usize>) {
        listed(nodes, count, self::graph(graph)?.nodes().iter().map(|node| node.id).collect())
    }

    fn cuGraphGetRootNodes(graph: usize, nodes: Out<usize>, count: Out<usize>) {
        let all = self::graph(graph)?.nodes();
        listed(nodes, count, all.iter().filter(|node| node.after.is_empty()).map(|node| node.id).collect())
    }

    fn cuGraphGetEdges(graph: usize, from: Out<usize>, to: Out<usize>, count: Out<usize>) {
        edges(graph, from, to, count)
    }

    fn cuGraphGetEdges_v2(graph: usize, from: Out<usize>, to: Out<usize>, data: Out<u64>, count: Out<usize>) {
        edges(graph, from, to, count)?;
        plain_edges(data, from, count)
    }

    fn cuGraphNodeGetDependencies_v2(node: usize, nodes: Out<usize>, data: Out<u64>, count: Out<usize>) {
        listed(nodes, count, self::node(node)?.after)?;
        plain_edges(data, nodes, count)
    }

    fn cuGraphNodeGetDependentNodes_v2(node: usize, nodes: Out<usize>, data: Out<u64>, count: Out<usize>) {
        listed(nodes, count, dependents(node)?)?;
        plain_edges(data, nodes, count)
    }

    fn cuGraphNodeGetDependencies(node: usize, nodes: Out<usize>, count: Out<usize>) {
        listed(nodes, count, self::node(node)?.after)
    }

    fn cuGraphNodeGetDependentNodes(node: usize, nodes: Out<usize>, count: Out<usize>) {
        listed(nodes, count, dependents(node)?)
    }

    fn cuGraphNodeGetType(node: usize, kind: Out<u32>) {
        kind.set(self::node(node)?.op.node_type())
    }

    fn cuGraphKernelNodeGetParams(node: usize, params: Out<KernelParams>) {
        params.set(kernel_params(node)?)
    }

    fn cuGraphKernelNodeGetParams_v2(node: usize, params: Out<KernelParams2>) {
        let first = kernel_params(node)?;
        params.set(KernelParams2 { first, kernel: 0, context: 0 })
    }

    fn cuGraphKernelNodeSetParams(node: usize, params: In<KernelParams>) {
        set_kernel(node, params.get()?)
    }

    fn cuGraphKernelNodeSetParams_v2(node: usize, params: In<KernelParams2>) {
        set_kernel(node, params.get()?.first)
    }

    fn cuGraphMemcpyNodeSetParams(node: usize, params: In<Memcpy3D>) {
        set(node, copy_op(params)?)
    }

    fn cuGraphMemsetNodeSetParams(node: usize, params: In<MemsetParams>) {
        set(node, memset_op(params.get()?)?)
    }

    fn cuGraphHostNodeSetParams(node: usize, params: In<HostParams>) {
        set(node, host_op(params.get()?)?)
    }

    fn cuGraphHostNodeGetParams(node: usize, params: Out<HostParams>) {
        match self::node(node)?.op {
            Op::Host { function, data } => params.set(HostParams { function, data }),
            _ => Err(Error::INVALID_VALUE),
        }
    }

    fn cuGraphExecKernelNodeSetParams(exec: usize, node: usize, params: In<KernelParams>) {
        exec_set_kernel(exec, node, params.get()?)
    }

    fn cuGraphExecKernelNodeSetParams_v2(exec: usize, node: usize, params: In<KernelParams2>) {
        exec_set_kernel(exec, node, params.get()?.first)
    }

    fn cuGraphExecMemcpyNodeSetParams(exec: usize, node: usize, params: In<Memcpy3D>, _context: usize) {
        exec_set(exec, node, |_| copy_op(params))
    }

    fn cuGraphExecMemsetNodeSetParams(exec: usize, node: usize, params: In<MemsetParams>, _context: usize) {
        exec_set(exec, node, |_| memset_op(params.get()?))
    }

    fn cuGraphExecHostNodeSetParams(exec: usize, node: usize, params: In<HostParams>) {
        exec_set(exec, node, |_| host_op(params.get()?))
    }

    fn cuGraphNodeSetEnabled(exec: usize, node: usize, enabled: u32) {
        self::exec(exec)?.edit(node, |own| match own.op.node_type() {
            // Kernels, copies and memsets.
            0..=2 => {
                own.enabled = enabled != 0;
                Ok(())
            }
            _ => Err(Error::INVALID_VALUE),
        })
    }

    fn cuGraphNodeGetEnabled(exec: usize, node: usize, enabled: Out<u32>) {
        enabled.set(self::exec(exec)?.edit(node, |own| Ok(own.enabled))?.into())
    }

    fn cuGraphInstantiateWithFlags(exec: Out<usize>, graph: usize, flags: u64) {
        instantiate(exec, graph, flags)
    }

    fn cuGraphInstantiate_v2(exec: Out<usize>, graph: usize, error: Out<usize>, _log: usize, _room: usize) {
        error.set_if_wanted(0);
        instantiate(exec, graph, 0)
    }

    fn cuGraphInstantiateWithParams(exec: Out<usize>, graph: usize, params: usize) {
        instantiate(exec, graph, In::<u64>::at(params).get()?)
    }

    fn cuGraphExecGetFlags(exec: usize, flags: Out<u64>) {
        flags.set(self::exec(exec)?.flags)
    }

    fn cuGraphExecUpdate_v2(exec: usize, graph: usize, info: Out<UpdateInfo>) {
        info.check()?;
        match update(exec, graph)? {
            Ok(()) => info.set(UpdateInfo { result: 0, node: 0, from: 0 }),
            Err(refused) => {
                info.set(refused)?;
                Err(Error::GRAPH_EXEC_UPDATE_FAILURE)
            }
        }
    }

    fn cuGraphExecUpdate(exec: usize, graph: usize, node: Out<usize>, result: Out<u32>) {
        let refused = update(exec, graph)?.err();
        node.set_if_wanted(refused.map_or(0, |info| info.node));
        result.set_if_wanted(refused.map_or(0, |info| info.result));
        refused.map_or(Ok(()), |_| Err(Error::GRAPH_EXEC_UPDATE_FAILURE))
    }

    fn cuGraphUpload(exec: usize, stream: usize) {
        open(stream)?;
        self::exec(exec).map(|_| ())
    }

    fn cuGraphLaunch(exec: usize, stream: usize) {
        launch(exec, stream)
    }

    fn cuGraphExecDestroy(exec: usize) {
        driver()?.execs.remove(exec).map(|_| ()).map_err(|_| Error::INVALID_VALUE)
    }

    fn cuDeviceGraphMemTrim(device: i32) {
        refuse_unsafe(driver()?)?;
        driver()?.device(device).map(|_| ())
    }
}
