"""Skip topologies as data: graphs, the rules that make them, and drawings. Imports no torch."""

from nestedseg.topology.graph import Graph, GraphError, Node
from nestedseg.topology.rules import list_topologies, register_topology, topology

__all__ = ["Graph", "GraphError", "Node", "list_topologies", "register_topology", "topology"]
