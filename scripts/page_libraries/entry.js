export { graphlib, layout } from "@dagrejs/dagre";
export { select } from "d3-selection";
export { curveMonotoneY, line } from "d3-shape";
export { zoom, zoomIdentity, zoomTransform } from "d3-zoom";
