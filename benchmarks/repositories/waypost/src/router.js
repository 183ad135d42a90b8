/** Routes such as `/users/:id` and `/files/*path`. */

function compile(pattern) {
  return pattern.split('/').filter(Boolean).map((text) => {
    if (text.startsWith(':')) {
      const optional = text.endsWith('?');
      return { kind: 'param', name: text.slice(1, optional ? -1 : undefined), optional };
    }
    if (text.startsWith('*')) return { kind: 'rest', name: text.slice(1) || 'rest' };
    return { kind: 'fixed', text };
  });
}

/** Lower is more specific: fixed parts before parameters before the rest. */
function rank(segments) {
  const order = { fixed: 0, param: 1, rest: 2 };
  return segments.map((segment) => order[segment.kind]).join('');
}

function decodePart(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** Parameters of a path that fits the segments, else null. */
export function matchSegments(segments, parts) {
  const params = {};
  for (const [index, segment] of segments.entries()) {
    if (segment.kind === 'rest') {
      params[segment.name] = parts.slice(index).map(decodePart).join('/');
      return params;
    }
    const part = parts[index];
    if (part === undefined) {
      if (segment.optional) continue;
      return null;
    }
    if (segment.kind === 'fixed' && segment.text !== part) return null;
    if (segment.kind === 'param') params[segment.name] = decodePart(part);
  }
  return parts.length > segments.length ? null : params;
}

export class Router {
  constructor({ prefix = '' } = {}) {
    this.prefix = prefix;
    this.routes = [];
  }

  /** Add a route. The most specific pattern wins, whatever the order; equal ones in the order they were added. */
  add(method, pattern, handler, name = null) {
    const segments = compile(this.prefix + pattern);
    const route = { method: method.toUpperCase(), pattern: this.prefix + pattern, segments, handler, name };
    this.routes.push(route);
    this.routes.sort((a, b) => rank(a.segments).localeCompare(rank(b.segments)));
    return this;
  }

  /** `{ handler, params }` of the route for a path (query and hash are ignored), or null. HEAD uses GET. */
  match(method, url) {
    const wanted = method.toUpperCase() === 'HEAD' ? 'GET' : method.toUpperCase();
    const parts = url.split(/[?#]/)[0].split('/').filter(Boolean);
    for (const route of this.routes) {
      if (route.method !== wanted) continue;
      const params = matchSegments(route.segments, parts);
      if (params) return { handler: route.handler, params };
    }
    return null;
  }

  /** Methods that have a route for this path, sorted: for a 405 answer. */
  allowed(url) {
    const parts = url.split(/[?#]/)[0].split('/').filter(Boolean);
    const methods = new Set();
    for (const route of this.routes) {
      if (matchSegments(route.segments, parts)) methods.add(route.method);
    }
    if (methods.has('GET')) methods.add('HEAD');
    return [...methods].sort();
  }

  /** The path of a named route; a missing required parameter throws a RangeError. */
  path(name, params = {}) {
    const route = this.routes.find((candidate) => candidate.name === name);
    if (!route) throw new RangeError(`no route named '${name}'`);
    const parts = [];
    for (const segment of route.segments) {
      if (segment.kind === 'fixed') {
        parts.push(segment.text);
      } else if (segment.kind === 'rest') {
        parts.push(String(params[segment.name] ?? '').split('/').map(encodeURIComponent).join('/'));
      } else if (params[segment.name] !== undefined) {
        parts.push(encodeURIComponent(params[segment.name]));
      } else if (!segment.optional) {
        throw new RangeError(`route '${name}' needs '${segment.name}'`);
      }
    }
    return `/${parts.join('/')}`;
  }
}
