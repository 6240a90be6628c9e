Redoc.init("/openapi.json", {}, document.getElementById("page"));
